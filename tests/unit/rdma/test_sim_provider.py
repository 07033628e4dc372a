"""The simulated provider: what arrives, what is refused, and how requests end."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from engines.rdma.device import (
    Access,
    ChannelOptions,
    ChannelState,
    InvalidDescriptor,
    Operation,
    OutOfMemory,
    ProviderUnavailable,
    Status,
)
from engines.rdma.providers import open_device
from engines.rdma.providers.sim.costs import Costs
from engines.rdma.providers.sim.fabric import Deadlock, Fabric

EVERYTHING = Access.LOCAL_WRITE | Access.REMOTE_READ | Access.REMOTE_WRITE
MTU = 4096
SIZES = [0, 1, 7, 8, MTU - 1, MTU, MTU + 1, 2**16 + 5, 2**20 + 3]


class Pair:
    """Two devices on a fabric of their own, and both ends of a connection."""

    def __init__(self, *, fabric=None, options=None, capacity=4 * 2**20, **device):
        self.fabric = fabric or Fabric()
        self.near = open_device("sim", capacity, fabric=self.fabric, **device)
        self.far = open_device("sim", capacity, fabric=self.fabric, **device)
        self.options = ChannelOptions(**(options or {}))
        self.here, self.there = self.near.channel(self.options), self.far.channel(self.options)
        self.connect()

    def connect(self):
        self.here.connect(self.there.address())
        self.there.connect(self.here.address())

    def regions(self, nbytes, *, near=EVERYTHING, far=EVERYTHING):
        source = self.near.allocate(nbytes, access=near)
        target = self.far.allocate(nbytes, access=far)
        source.view[:] = np.random.default_rng(nbytes).bytes(nbytes)
        return source, target, self.far.describe(target)

    def finish(self, count=1):
        """Poll until so many requests have ended."""
        done = []
        while len(done) < count:
            found = self.here.poll()
            done += found
            if not found:
                self.near.idle()
        return done


@pytest.mark.parametrize("nbytes", SIZES)
@pytest.mark.parametrize("grain", ["packet", "burst"])
def test_a_write_places_exactly_the_bytes_it_was_given(nbytes, grain):
    pair = Pair(fabric=Fabric(grain=grain))
    source, target, there = pair.regions(nbytes + 16)
    target.view[:] = b"\xee" * (nbytes + 16)

    pair.here.write(source, there, offset=3, at=5, nbytes=nbytes)

    (done,) = pair.finish()
    assert (done.operation, done.status, done.nbytes) == (Operation.WRITE, Status.SUCCESS, nbytes)
    expected = b"\xee" * 5 + bytes(source.view[3 : 3 + nbytes]) + b"\xee" * 11
    assert bytes(target.view) == expected


@pytest.mark.parametrize("nbytes", SIZES)
@pytest.mark.parametrize("grain", ["packet", "burst"])
def test_a_read_fetches_exactly_the_bytes_it_asked_for(nbytes, grain):
    pair = Pair(fabric=Fabric(grain=grain))
    back, there, descriptor = pair.regions(nbytes + 8)
    there.view[:] = np.random.default_rng(1).bytes(nbytes + 8)
    before = bytes(back.view)

    pair.here.read(back, descriptor, offset=1, at=2, nbytes=nbytes)

    (done,) = pair.finish()
    assert (done.operation, done.status) == (Operation.READ, Status.SUCCESS)
    assert bytes(back.view) == before[:1] + bytes(there.view[2 : 2 + nbytes]) + before[1 + nbytes :]


def test_a_read_sees_the_write_posted_before_it():
    pair = Pair()
    source, _, there = pair.regions(3 * MTU)
    back = pair.near.allocate(3 * MTU, access=EVERYTHING)

    pair.here.write(source, there, offset=0, at=0, nbytes=3 * MTU)
    pair.here.read(back, there, offset=0, at=0, nbytes=3 * MTU)

    assert [done.status for done in pair.finish(2)] == [Status.SUCCESS] * 2
    assert bytes(back.view) == bytes(source.view)


def test_what_is_longer_than_a_work_request_is_cut_and_ends_once():
    pair = Pair(largest_write=3 * MTU)
    source, target, there = pair.regions(10 * MTU + 1)

    ticket = pair.here.write(source, there, offset=0, at=0, nbytes=10 * MTU + 1, imm=9)

    assert [(d.ticket, d.nbytes) for d in pair.finish()] == [(ticket, 10 * MTU + 1)]
    assert bytes(target.view) == bytes(source.view)
    assert (pair.there.arrived(), pair.there.arrived()) == (9, None)
    assert pair.near.counters().writes == 1


def test_messages_and_immediates_arrive_in_order():
    pair = Pair()
    source, _, there = pair.regions(8)
    for number in range(5):
        pair.here.send(b"message %d" % number)
        pair.here.write(source, there, offset=0, at=0, nbytes=0, imm=number)
    pair.finish(10)
    pair.far.idle()

    assert [pair.there.receive() for _ in range(6)] == [*(b"message %d" % n for n in range(5)), None]
    assert [pair.there.arrived() for _ in range(6)] == [0, 1, 2, 3, 4, None]
    assert pair.far.counters().receives == 10


def test_a_poller_that_sees_an_immediate_sees_the_bytes_before_it():
    pair = Pair()
    nbytes = 2**20
    source, target, there = pair.regions(nbytes)

    pair.here.write(source, there, offset=0, at=0, nbytes=nbytes, imm=1, signaled=False)
    while pair.there.arrived() is None:
        pair.far.idle()

    assert bytes(target.view) == bytes(source.view)


def test_unsignalled_requests_complete_without_a_word():
    pair = Pair(options={"depth": 4})
    source, _, there = pair.regions(64)
    for number in range(50):
        pair.here.write(source, there, offset=0, at=0, nbytes=64, signaled=number == 49)

    assert [done.ticket for done in pair.finish()] == [49]
    assert pair.near.counters().writes == 50


def test_more_than_the_queue_holds_is_held_back_and_not_dropped():
    pair = Pair(options={"depth": 2})
    source, _, there = pair.regions(64)
    for _ in range(40):
        pair.here.write(source, there, offset=0, at=0, nbytes=64)

    assert [done.ticket for done in pair.finish(40)] == list(range(40))
    assert pair.here.lost_completions == 0


def test_a_completion_queue_made_too_small_loses_completions_silently():
    pair = Pair(completions=3)
    source, _, there = pair.regions(64)
    for _ in range(8):
        pair.here.write(source, there, offset=0, at=0, nbytes=64)
    pair.fabric.env.run()  # nobody polls meanwhile

    # As on Soft-RoCE: what is lost is lost without a word, and the queue pair goes on.
    assert len(pair.here.poll()) == 3
    assert pair.here.lost_completions == 5
    assert pair.here.state is ChannelState.READY


FORBIDDEN = {
    "a wrong key": lambda d: (replace(d, rkey=d.rkey ^ 1), 0, 64),
    "past the end": lambda d: (d, 1, 64),
    "far past the end": lambda d: (d, 2**40, 1),
    "before the beginning": lambda d: (d, -1, 8),
    "another machine's": lambda d: (replace(d, device="elsewhere"), 0, 64),
}


@pytest.mark.parametrize("what", FORBIDDEN)
@pytest.mark.parametrize("operation", ["write", "read"])
def test_forbidden_accesses_are_refused_and_flush_the_rest(what, operation):
    pair = Pair()
    source, target, there = pair.regions(64)
    before = bytes(target.view), bytes(source.view)
    wrong, at, nbytes = FORBIDDEN[what](there)

    getattr(pair.here, operation)(source, wrong, offset=0, at=at, nbytes=nbytes)
    pair.here.write(source, there, offset=0, at=0, nbytes=64)

    assert [done.status for done in pair.finish(2)] == [Status.REMOTE_ACCESS, Status.FLUSHED]
    assert (bytes(target.view), bytes(source.view)) == before
    assert pair.here.state is ChannelState.ERROR


@pytest.mark.parametrize(
    ("operation", "access"),
    [("write", EVERYTHING & ~Access.REMOTE_WRITE), ("read", EVERYTHING & ~Access.REMOTE_READ)],
)
def test_rights_are_the_targets_word(operation, access):
    pair = Pair()
    source, target, there = pair.regions(64, far=access)
    before = bytes(target.view)
    forged = replace(there, access=int(EVERYTHING))

    getattr(pair.here, operation)(source, forged, offset=0, at=0, nbytes=64)

    assert pair.finish()[0].status is Status.REMOTE_ACCESS
    assert bytes(target.view) == before
    assert pair.there.state is ChannelState.ERROR


def test_the_local_side_is_protected_too():
    for offset, nbytes in ((0, 65), (-1, 8), (64, 1)):
        pair = Pair()
        source, _, there = pair.regions(64)
        pair.here.write(source, there, offset=offset, at=0, nbytes=nbytes)
        assert pair.finish()[0].status is Status.LOCAL_PROTECTION
    pair = Pair()
    source, _, there = pair.regions(64, near=Access.REMOTE_READ)
    pair.here.read(source, there, offset=0, at=0, nbytes=64)
    assert pair.finish()[0].status is Status.LOCAL_PROTECTION
    pair = Pair()
    stranger = Pair().regions(64)[0]
    _, _, there = pair.regions(64)
    pair.here.write(stranger, there, offset=0, at=0, nbytes=64)
    assert pair.finish()[0].status is Status.LOCAL_PROTECTION


def test_what_was_posted_before_a_local_error_still_completes():
    pair = Pair()
    source, target, there = pair.regions(2**18)
    pair.here.write(source, there, offset=0, at=0, nbytes=2**18)
    pair.here.write(source, there, offset=1, at=0, nbytes=2**18)
    pair.here.write(source, there, offset=0, at=0, nbytes=1)

    statuses = [done.status for done in pair.finish(3)]

    assert statuses == [Status.SUCCESS, Status.LOCAL_PROTECTION, Status.FLUSHED]
    assert bytes(target.view) == bytes(source.view)


def test_a_descriptor_of_an_earlier_epoch_writes_nothing():
    pair = Pair()
    source, _, there = pair.regions(64)
    pair.far.reset()
    again = pair.far.allocate(64, access=EVERYTHING)
    assert pair.far.describe(again).address == there.address

    pair.here.write(source, there, offset=0, at=0, nbytes=64)

    assert pair.finish()[0].status is Status.REMOTE_ACCESS
    assert bytes(again.view) == bytes(64)


def test_bytes_under_way_when_the_target_starts_over_are_dropped():
    pair = Pair()
    source, _, there = pair.regions(2**20)
    pair.here.write(source, there, offset=0, at=0, nbytes=2**20)
    while pair.far.adapter.placed_by == 0:
        pair.fabric.env.step()
    pair.far.reset()
    again = pair.far.allocate(2**20, access=EVERYTHING)

    assert pair.finish()[0].status is Status.REMOTE_ACCESS
    assert bytes(again.view) == bytes(2**20)


def test_a_reset_channel_works_again_under_a_new_address():
    pair = Pair()
    source, target, there = pair.regions(64)
    pair.here.write(source, replace(there, rkey=there.rkey ^ 1), offset=0, at=0, nbytes=64)
    pair.finish()
    old = pair.here.address()
    pair.here.reset()
    pair.there.reset()

    assert pair.here.state is ChannelState.UNCONNECTED
    assert pair.here.address() != old
    pair.connect()
    pair.here.write(source, there, offset=0, at=0, nbytes=64)
    assert pair.finish()[0].status is Status.SUCCESS
    assert bytes(target.view) == bytes(source.view)


def test_resetting_ends_every_outstanding_ticket():
    pair = Pair(options={"depth": 2})
    source, _, there = pair.regions(2**20)
    tickets = [pair.here.write(source, there, offset=0, at=0, nbytes=2**20) for _ in range(5)]
    pair.near.idle()

    pair.here.reset()

    done = pair.here.poll()
    assert [one.ticket for one in done] == tickets
    assert {one.status for one in done} <= {Status.SUCCESS, Status.FLUSHED}
    assert done[-1].status is Status.FLUSHED


def test_posting_to_an_unconnected_or_closed_channel_is_flushed():
    pair = Pair()
    source, _, there = pair.regions(8)
    lonely = pair.near.channel()
    lonely.write(source, replace(there, device=""), offset=0, at=0, nbytes=8)
    assert [done.status for done in lonely.poll()] == [Status.FLUSHED]
    pair.here.close()
    pair.here.send(b"late")
    assert [done.status for done in pair.here.poll()] == [Status.FLUSHED]
    assert pair.here.state is ChannelState.CLOSED


def test_a_message_longer_than_its_buffer_is_an_error_of_both_ends():
    pair = Pair(options={"message_bytes": 100})
    pair.here.send(bytes(101))
    assert pair.finish()[0].status is Status.REMOTE_INVALID
    assert pair.there.state is ChannelState.ERROR
    assert pair.there.receive() is None


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"provider": "sim"}']
    + [
        json.dumps({"provider": "sim", "adapter": "sim0", "pair": 1, "mtu": 4096, "psn": 0} | change)
        for change in ({"provider": "shm"}, {"pair": -1}, {"pair": True}, {"mtu": 0}, {"psn": "0"}, {"more": 1})
    ],
)
def test_malformed_addresses_are_refused(text):
    pair = Pair()
    with pytest.raises(InvalidDescriptor):
        pair.near.channel().connect(text)


def test_an_adapter_that_is_not_there_cannot_be_connected_to():
    pair = Pair()
    address = pair.there.address()
    pair.far.close()
    with pytest.raises(ProviderUnavailable):
        pair.near.channel().connect(address)


def test_memory_is_registered_in_place():
    pair = Pair()
    own = np.arange(5000, dtype=np.float32)
    region = pair.near.register(memoryview(own), access=EVERYTHING)
    _, target, there = pair.regions(own.nbytes)

    pair.here.write(region, there, offset=0, at=0, nbytes=own.nbytes)
    pair.finish()

    assert bytes(target.view) == own.tobytes()
    with pytest.raises(ProviderUnavailable, match="gaps"):
        pair.near.register(memoryview(own)[::2], access=EVERYTHING)
    own.flags.writeable = False
    with pytest.raises(ProviderUnavailable, match="read-only"):
        pair.near.register(memoryview(own), access=EVERYTHING)


def test_allocated_memory_is_zero_and_bounded():
    device = open_device("sim", 4096, fabric=Fabric())
    device.allocate(4096, access=EVERYTHING).view[:] = b"\xff" * 4096
    with pytest.raises(OutOfMemory):
        device.allocate(1, access=EVERYTHING)
    device.reset()
    assert bytes(device.allocate(4096, access=EVERYTHING).view) == bytes(4096)


def test_waiting_for_what_nobody_sends_is_a_deadlock_that_says_who_waits():
    pair = Pair(options={"timeout": 0})
    source, _, there = pair.regions(8)
    pair.far.close()
    pair.here.write(source, there, offset=0, at=0, nbytes=8)
    with pytest.raises(Deadlock, match="sim0: queue pair 1 has 1 outstanding to sim1"):
        pair.finish()


def test_time_goes_on_only_after_every_device_had_a_look():
    pair = Pair()
    source, _target, there = pair.regions(8)
    pair.here.write(source, there, offset=0, at=0, nbytes=8)
    pair.near.idle()
    instant = pair.fabric.now

    pair.far.idle()
    assert pair.fabric.now == instant
    pair.far.idle()
    assert pair.fabric.now > instant


def test_counted_copies_take_the_processors_time():
    costs = Costs(memcpy=lambda nbytes: 1e9, serialise=2e9)
    device = open_device("sim", 64, fabric=Fabric(), costs=costs)
    start = device.clock()
    device.ledger.count("stage", 1_000_000)
    assert device.clock() - start == pytest.approx(1e-3, abs=1e-12)
    device.ledger.count("serialise", 1_000_000)
    assert device.clock() - start == pytest.approx(1.5e-3, abs=1e-12)
    device.ledger.count("bytes to message", 1_000_000)
    assert device.clock() - start == pytest.approx(1.5e-3, abs=1e-12)
    assert device.ledger.nbytes == 3_000_000


def test_no_mtu_that_infiniband_does_not_have():
    with pytest.raises(ValueError, match="MTU"):
        open_device("sim", 64, fabric=Fabric(), mtu=1500)
