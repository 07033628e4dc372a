"""The simulated provider against closed forms: when things happen."""

from __future__ import annotations

import pytest

from engines.rdma.device import Access, ChannelOptions, Status
from engines.rdma.providers import open_device
from engines.rdma.providers.sim.costs import Costs
from engines.rdma.providers.sim.fabric import Fabric, Wire
from engines.rdma.providers.sim.stages import passed

EVERYTHING = Access.LOCAL_WRITE | Access.REMOTE_READ | Access.REMOTE_WRITE
COSTS = Costs(
    post=1e-6,
    completion=2e-6,
    bus_latency=400e-9,
    bus_rate=20e9,
    wire_rate=12.5e9,
    header=86,
    per_packet=10e-9,
    context_miss=0.0,
)
PROPAGATION = 1e-6
EXACT = {"rel": 0, "abs": 2e-12}


class Ranks:
    """Devices on one fabric, and connections between pairs of them."""

    def __init__(self, *costs, wire=None, mtus=(4096, 4096), capacity=2**24, grain="auto"):
        self.fabric = Fabric(wire or Wire(propagation=PROPAGATION), grain=grain)
        self.devices = [
            open_device("sim", capacity, fabric=self.fabric, costs=cost, mtu=mtu)
            for cost, mtu in zip(costs or (COSTS, COSTS), mtus, strict=True)
        ]
        while any(device.processor.time > self.fabric.now for device in self.devices):
            self.fabric.env.run(until=max(device.processor.time for device in self.devices))

    def channel(self, left=0, right=1, **options):
        ends = [self.devices[rank].channel(ChannelOptions(**options)) for rank in (left, right)]
        ends[0].connect(ends[1].address())
        ends[1].connect(ends[0].address())
        return ends

    def region(self, rank, nbytes):
        region = self.devices[rank].allocate(nbytes, access=EVERYTHING)
        return region, self.devices[rank].describe(region)

    def wait(self, rank, ready):
        """Seconds until `ready` on a rank's clock."""
        start = self.devices[rank].clock()
        while not ready():
            self.devices[rank].idle()
        return self.devices[rank].clock() - start


def write(ranks, nbytes, *, count=1, **options):
    """Seconds from posting writes until the first word after the last of their bytes is seen at the target."""
    here, _ = ranks.channel(**options)
    source, _ = ranks.region(0, nbytes)
    target, there = ranks.region(1, nbytes)
    source.view[-1] = 1
    for number in range(count):
        last = number == count - 1
        here.write(source, there, offset=0, at=0, nbytes=nbytes - (not last), signaled=False)
    return ranks.wait(1, lambda: target.view[-1]) if nbytes > 1 or count == 1 else None


@pytest.mark.parametrize("nbytes", [1, 64, 4096])
def test_the_latency_of_a_small_write_is_the_sum_of_its_parts(nbytes):
    ranks = Ranks()
    seen = write(ranks, nbytes)

    bus, port = nbytes / COSTS.bus_rate, (nbytes + COSTS.header) / COSTS.wire_rate
    sender = COSTS.post + COSTS.per_packet + COSTS.bus_latency + bus + port
    receiver = COSTS.per_packet + bus + COSTS.bus_latency + COSTS.completion
    assert seen == pytest.approx(sender + PROPAGATION + receiver, **EXACT)


def test_a_completion_comes_back_after_the_acknowledgement():
    ranks = Ranks()
    here, _ = ranks.channel()
    source, _ = ranks.region(0, 64)
    _, there = ranks.region(1, 64)
    here.write(source, there, offset=0, at=0, nbytes=64)
    ended = ranks.wait(0, lambda: here.poll())

    port, ack = (64 + COSTS.header) / COSTS.wire_rate, COSTS.header / COSTS.wire_rate
    out = COSTS.per_packet + COSTS.bus_latency + 2 * 64 / COSTS.bus_rate + port + PROPAGATION + COSTS.per_packet
    back = ack + PROPAGATION + COSTS.per_packet + COSTS.bus_latency + COSTS.completion
    # The post itself was over before `wait` looked at the clock.
    assert ended == pytest.approx(out + back, **EXACT)


@pytest.mark.parametrize(
    ("wire", "bus", "packet"),
    [(12.5e9, 50e9, 0.0), (50e9, 8e9, 0.0), (50e9, 50e9, 1e-6)],
    ids=["port", "bus", "engine"],
)
def test_large_writes_flow_at_the_rate_of_the_slowest_stage(wire, bus, packet):
    costs = Costs(wire_rate=wire, bus_rate=bus, per_packet=packet, header=86)
    ranks = Ranks(costs, costs, capacity=2**26)
    nbytes = 2**25
    seconds = write(ranks, nbytes)

    rate = min(wire * 4096 / (4096 + 86), bus, 4096 / packet if packet else float("inf"))
    assert nbytes / seconds == pytest.approx(rate, rel=0.003)
    assert nbytes / seconds < rate


def test_a_connection_takes_the_smaller_mtu():
    nbytes = 2**22
    rates = {}
    for mtus in ((4096, 4096), (4096, 1024), (1024, 4096)):
        ranks = Ranks(mtus=mtus)
        rates[mtus] = nbytes / write(ranks, nbytes)
        assert ranks.devices[0].counters().wire["sent_pkts"] == nbytes // min(mtus)
    for mtus, rate in rates.items():
        mtu = min(mtus)
        assert rate == pytest.approx(COSTS.wire_rate * mtu / (mtu + COSTS.header), rel=0.03)


def test_requests_in_flight_hide_the_round_trip_until_the_wire_is_full():
    """Throughput of small writes rises with depth as depth / round trip, up to what the processor can post."""
    nbytes, count = 1024, 256
    seconds = {}
    for depth in (1, 2, 4, 64):
        ranks = Ranks()
        here, _ = ranks.channel(depth=depth)
        source, _ = ranks.region(0, nbytes)
        _, there = ranks.region(1, nbytes)
        for _ in range(count):
            here.write(source, there, offset=0, at=0, nbytes=nbytes)
        ended = 0

        def all_ended():
            nonlocal ended
            ended += len(here.poll())  # noqa: B023 - used within the turn
            return ended == count

        start = ranks.fabric.now / 1e12
        ranks.wait(0, all_ended)
        seconds[depth] = ranks.devices[0].clock() - start
    round_trip = seconds[1] / count
    assert seconds[2] == pytest.approx(seconds[1] / 2, rel=0.05)
    assert seconds[4] == pytest.approx(seconds[1] / 4, rel=0.05)
    assert seconds[64] == pytest.approx(count * COSTS.post + round_trip, rel=0.05)


def test_queue_pairs_beyond_the_cache_cost_a_miss_per_turn():
    """In turns over more queue pairs than the adapter holds each one misses every time, over fewer only at first."""
    miss, held, turns = 5e-6, 4, 6
    costs = Costs(contexts=held, context_miss=miss)
    each = {}
    for pairs, misses in ((held, held), (held + 1, turns * (held + 1))):
        ranks = Ranks(costs, Costs())
        channels = [ranks.channel()[0] for _ in range(pairs)]
        source, _ = ranks.region(0, 64)
        _, there = ranks.region(1, 64)
        for turn in range(turns):
            start = ranks.devices[0].clock()
            for channel in channels:
                channel.write(source, there, offset=0, at=0, nbytes=64)
                ranks.wait(0, channel.poll)
            each[pairs, turn] = (ranks.devices[0].clock() - start) / pairs
        assert ranks.devices[0].counters().wire["context_misses"] == misses
    hit = each[held, turns - 1]
    # The receiver fetches the state while the packet, whose header names it, is still coming in.
    fetched = Costs().context_miss - Costs().wire(64) / 1e12
    assert each[held, 0] - hit == pytest.approx(miss + fetched, abs=1e-9)
    assert each[held + 1, turns - 1] - hit == pytest.approx(miss, abs=1e-9)


def test_two_queue_pairs_share_the_port_by_turns():
    """A small message does not wait behind a large one of another queue pair, but for a quantum."""
    ranks = Ranks()
    big, _ = ranks.channel()
    small, there_small = ranks.channel()
    source, _ = ranks.region(0, 2**23)
    _, there = ranks.region(1, 2**23)
    big.write(source, there, offset=0, at=0, nbytes=2**23)
    while ranks.devices[0].counters().wire["sent_pkts"] < 100:
        ranks.fabric.env.step()
    start = ranks.fabric.now
    small.send(b"urgent")
    while (message := there_small.receive()) is None:
        ranks.fabric.env.step()
    assert message == b"urgent"
    quantum = 2**16 / COSTS.wire_rate
    assert (ranks.fabric.now - start) / 1e12 < 2 * quantum + 10e-6


def test_two_senders_share_the_receivers_port():
    nbytes = 2**21
    alone = write(Ranks(), nbytes)
    for grain in ("packet", "burst"):
        ranks = Ranks(COSTS, COSTS, COSTS, mtus=(4096,) * 3, grain=grain)
        targets = []
        for sender in (0, 1):
            here, _ = ranks.channel(sender, 2)
            source, _ = ranks.region(sender, nbytes)
            target, there = ranks.region(2, nbytes)
            source.view[-1] = 1
            here.write(source, there, offset=0, at=0, nbytes=nbytes)
            targets.append(target)
        seconds = ranks.wait(2, lambda: all(target.view[-1] for target in targets))  # noqa: B023 - used in the turn
        assert seconds == pytest.approx(2 * alone, rel=0.05)


def test_a_slower_port_at_the_end_sets_the_rate():
    slow = Costs(wire_rate=3e9, header=0, per_packet=0.0)
    fast = Costs(wire_rate=12e9, header=0, per_packet=0.0)
    nbytes = 2**22
    for costs in ((fast, slow), (slow, fast)):
        assert nbytes / write(Ranks(*costs), nbytes) == pytest.approx(3e9, rel=0.01)


def test_registering_costs_a_constant_and_so_much_a_page():
    device = open_device("sim", 0, fabric=Fabric(), costs=COSTS)
    start = device.clock()
    device.register(memoryview(bytearray(10 * COSTS.page + 1)), access=EVERYTHING)
    assert device.clock() - start == pytest.approx(COSTS.registration + 11 * COSTS.registration_per_page, **EXACT)


def test_a_dead_peer_is_noticed_after_every_retry_has_timed_out():
    ranks = Ranks()
    here, _ = ranks.channel(timeout=12, retries=3)
    source, _ = ranks.region(0, 64)
    _, there = ranks.region(1, 64)
    ranks.devices[1].close()
    here.write(source, there, offset=0, at=0, nbytes=64)
    here.write(source, there, offset=0, at=0, nbytes=64)
    done = []
    seconds = ranks.wait(0, lambda: done.extend(here.poll()) or len(done) == 2)

    assert [one.status for one in done] == [Status.RETRY_EXCEEDED, Status.FLUSHED]
    assert seconds == pytest.approx(4 * 4.096e-6 * 2**12, rel=1e-3)
    assert ranks.devices[0].counters().wire["timeouts"] == 4


@pytest.mark.parametrize("retries", [0, 1, 4])
def test_a_receiver_without_a_buffer_is_asked_again_so_often(retries):
    timer = 640e-6
    ranks = Ranks()
    here, _ = ranks.channel(depth=1, rnr_retries=retries)
    done = []
    here.send(b"taken")
    here.send(b"refused")
    seconds = ranks.wait(0, lambda: done.extend(here.poll()) or len(done) == 2)

    assert [one.status for one in done] == [Status.SUCCESS, Status.RECEIVER_NOT_READY]
    assert seconds == pytest.approx(retries * timer, abs=50e-6)


def test_a_receiver_may_take_its_time_if_retries_are_for_ever():
    ranks = Ranks()
    here, there = ranks.channel(depth=1, rnr_retries=7)
    for number in range(3):
        here.send(b"%d" % number)
    for _ in range(40):
        ranks.devices[0].idle()
    assert ranks.devices[1].counters().wire["send_rnr_err"] > 10
    taken = []

    def take():
        message = there.receive()
        taken.extend([message] if message is not None else [])
        here.poll()
        return len(taken) == 3

    ranks.wait(1, take)
    assert taken == [b"0", b"1", b"2"]


def test_the_closed_form_of_one_stage_and_of_two():
    assert passed([10], [3], [0], 4) == [22]
    assert passed([0, 0], [3, 5], [0, 7], 4) == [12, 3 + 7 + 4 * 5]
    assert passed([0, 100], [3, 5], [0, 7], 4) == [12, 120]
    assert passed([0, 0], [5, 3], [0, -2], 4) == [20, 20 - 2 + 3]
