"""The simulated fabric when packets are lost or overtake each other, and that chance is a function of the seed."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from engines.rdma.device import WORD, Access, ChannelOptions, Status
from engines.rdma.providers import open_device
from engines.rdma.providers.sim.costs import Costs
from engines.rdma.providers.sim.fabric import Fabric, Wire

EVERYTHING = Access.LOCAL_WRITE | Access.REMOTE_READ | Access.REMOTE_WRITE
MTU = 4096


class Pair:
    """Two devices on one fabric, joined."""

    def __init__(self, wire, *, seed=0, capacity=2**25, costs=None, options=None, **device):
        self.fabric = Fabric(wire, seed=seed, timeline=True)
        self.near = open_device("sim", capacity, fabric=self.fabric, costs=costs, **device)
        self.far = open_device("sim", capacity, fabric=self.fabric, costs=costs, **device)
        ends = [device.channel(ChannelOptions(**(options or {}))) for device in (self.near, self.far)]
        ends[0].connect(ends[1].address())
        ends[1].connect(ends[0].address())
        self.here, self.there = ends

    def regions(self, nbytes):
        source, target = (device.allocate(nbytes, access=EVERYTHING) for device in (self.near, self.far))
        source.view[:] = np.random.default_rng(3).bytes(nbytes)
        return source, target, self.far.describe(target)

    def finish(self, count=1):
        done = []
        while len(done) < count:
            found = self.here.poll()
            done += found
            if not found:
                self.near.idle()
        return [one.status for one in done]


LOSSY = Wire(loss=0.01)
QUICK = {"timeout": 4, "retries": 7}
"""65 us: so that a lost acknowledgement costs little."""


def test_one_packet_in_a_hundred_lost_and_every_byte_arrives():
    pair = Pair(LOSSY, options=QUICK)
    nbytes = 2**21 + 5
    source, target, there = pair.regions(nbytes)
    back = pair.near.allocate(nbytes, access=EVERYTHING)

    pair.here.write(source, there, offset=0, at=0, nbytes=nbytes, imm=1)
    pair.here.read(back, there, offset=0, at=0, nbytes=nbytes)
    pair.here.send(b"end")

    assert pair.finish(3) == [Status.SUCCESS] * 3
    assert bytes(target.view) == bytes(source.view)
    assert bytes(back.view) == bytes(source.view)
    assert (pair.there.arrived(), pair.there.arrived()) == (1, None)
    assert (pair.there.receive(), pair.there.receive()) == (b"end", None)
    wires = pair.near.counters().wire, pair.far.counters().wire
    assert wires[0]["lost_pkts"] > 2
    assert wires[0]["retransmissions"] > wires[0]["lost_pkts"]
    assert wires[0]["rcvd_seq_err"] == wires[1]["out_of_seq_request"] > 0


@pytest.mark.parametrize("loss", [0.005, 0.02])
def test_goodput_under_loss_is_that_of_go_back_n(loss):
    """A loss that the responder tells of costs the packets of a round trip, one that nobody tells of a timeout."""
    costs = Costs(header=0, per_packet=0.0, bus_rate=50e9)
    nbytes = 2**22
    pair = Pair(Wire(loss=loss), costs=costs, options=QUICK, quantum=MTU)
    source, _, there = pair.regions(nbytes)
    start = pair.near.clock()
    pair.here.write(source, there, offset=0, at=0, nbytes=nbytes)
    pair.finish()
    elapsed = pair.near.clock() - start

    packet = MTU / costs.wire_rate
    # From the missing packet leaving: the next one arrives and is answered, and the engine begins again, over the bus.
    turn = 2 * packet + 2 * 1e-6 + costs.bus_latency + MTU / costs.bus_rate
    wire = pair.near.counters().wire
    lost_time = wire["rcvd_seq_err"] * turn + wire["timeouts"] * 4.096e-6 * 2**4
    assert elapsed == pytest.approx(nbytes / costs.wire_rate + lost_time, rel=0.03)
    assert lost_time > 0.01 * elapsed
    if not wire["timeouts"]:
        # What `emulation.faults.Loss` says of a link: capacity / (1 + p W), with W packets in a round trip; p as drawn.
        round_trip = 2 * (1e-6 + costs.bus_latency) + packet
        window, drawn = costs.wire_rate * round_trip / MTU, wire["rcvd_seq_err"] / (nbytes / MTU)
        assert nbytes / elapsed == pytest.approx(costs.wire_rate / (1 + drawn * window), rel=0.03)


def test_a_wire_that_loses_almost_everything_ends_in_an_error():
    pair = Pair(Wire(loss=0.95), options={"timeout": 1, "retries": 2})
    source, _, there = pair.regions(64)
    for _ in range(3):
        pair.here.write(source, there, offset=0, at=0, nbytes=64)
    statuses = pair.finish(3)
    assert Status.RETRY_EXCEEDED in statuses
    assert statuses[-1] in (Status.FLUSHED, Status.RETRY_EXCEEDED)


ADAPTIVE = Wire(reorder=0.2, detour=30e-6)
PAYLOAD = 2**17


def sealed(view, step):
    """What a sender in `debug` mode writes: payload, its CRC-32 and the step."""
    view[-2 * WORD : -WORD] = zlib.crc32(view[: -2 * WORD]).to_bytes(WORD, "little")
    view[-WORD:] = step.to_bytes(WORD, "little")


def is_sound(view):
    return zlib.crc32(view[: -2 * WORD]) == int.from_bytes(view[-2 * WORD : -WORD], "little")


def torn(wire, steps=8):
    """How often a poller of the tail saw it before the payload it vouches for, as the CRC says."""
    pair = Pair(wire)
    assert pair.far.traits.in_order is (wire.reorder == 0)
    source, target, there = pair.regions(PAYLOAD)
    count = 0
    for step in range(1, steps + 1):
        source.view[: -2 * WORD] = np.random.default_rng(step).bytes(PAYLOAD - 2 * WORD)
        sealed(source.view, step)
        pair.here.write(source, there, offset=0, at=0, nbytes=PAYLOAD, signaled=False)
        while int.from_bytes(target.view[-WORD:], "little") != step:
            pair.far.idle()
        count += not is_sound(target.view)
        # With `debug` a receiver looks again until it is sound: late, but never wrong.
        while not is_sound(target.view):
            pair.far.idle()
        assert bytes(target.view) == bytes(source.view)
    return count


def test_adaptive_routing_tears_the_tail_from_its_payload_and_the_crc_notices():
    assert torn(ADAPTIVE) > 0
    assert torn(Wire()) == 0


def test_an_immediate_comes_after_its_payload_however_packets_overtake():
    pair = Pair(ADAPTIVE)
    assert not pair.far.traits.in_order
    source, target, there = pair.regions(PAYLOAD)
    for step in range(1, 9):
        source.view[:] = np.random.default_rng(step).bytes(PAYLOAD)
        pair.here.write(source, there, offset=0, at=0, nbytes=PAYLOAD, imm=step, signaled=False)
        while (found := pair.there.arrived()) is None:
            pair.far.idle()
        assert found == step
        assert bytes(target.view) == bytes(source.view)
    assert pair.near.counters().wire["retransmissions"] == 0


def events(seed, wire=LOSSY):
    pair = Pair(wire, seed=seed, options=QUICK)
    source, _, there = pair.regions(2**19)
    for _ in range(3):
        pair.here.write(source, there, offset=0, at=0, nbytes=2**19, imm=2)
    pair.finish(3)
    return pair.fabric.digest, pair.near.clock()


@pytest.mark.parametrize("wire", [LOSSY, ADAPTIVE], ids=["loss", "adaptive"])
def test_equal_seeds_give_equal_traces_and_others_do_not(wire):
    assert events(7, wire) == events(7, wire)
    assert events(7, wire) != events(8, wire)


def test_the_timeline_has_what_happened_on_each_adapter():
    pair = Pair(Wire())
    source, _, there = pair.regions(2**18)
    pair.here.write(source, there, offset=0, at=0, nbytes=2**18)
    pair.finish()

    drawn = {(one.process, one.thread) for one in pair.fabric.timeline}
    assert {("sim0", "processor"), ("sim0", "wire"), ("sim1", "memory"), ("sim1", "acknowledgements")} <= drawn
    wire = [one for one in pair.fabric.timeline if (one.process, one.thread) == ("sim0", "wire")]
    nbytes = sum(one.duration for one in wire) * Costs().wire_rate
    assert nbytes == pytest.approx(2**18 + 64 * Costs().header, rel=0.05)
    assert all(one.duration >= 0 for one in pair.fabric.timeline)


@pytest.mark.parametrize("change", [{"loss": -0.1}, {"loss": 1.0}, {"reorder": 2}])
def test_probabilities_are_probabilities(change):
    with pytest.raises(ValueError, match="probability"):
        Wire(**change)
