"""The simulated provider against plain models: memory as it should be, and bursts against packets."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from engines.rdma.device import Access, ChannelOptions, Operation, Status
from engines.rdma.providers import open_device
from engines.rdma.providers.sim.costs import Costs
from engines.rdma.providers.sim.fabric import Fabric, Wire
from engines.rdma.providers.sim.stages import passed

EVERYTHING = Access.LOCAL_WRITE | Access.REMOTE_READ | Access.REMOTE_WRITE
MTU = 256
ROOM = 80 * MTU
times = st.integers(0, 10**6)


@given(data=st.data(), stages=st.integers(1, 6), count=st.integers(1, 30))
def test_the_closed_form_is_the_recurrence(data, stages, count):
    service = data.draw(st.lists(times, min_size=stages, max_size=stages))
    free = data.draw(st.lists(times, min_size=stages, max_size=stages))
    lag = data.draw(st.lists(st.integers(-(10**6), 10**6), min_size=stages, max_size=stages))
    done = list(free)
    for _ in range(count):
        for stage in range(stages):
            before = done[stage - 1] + lag[stage] if stage else done[stage]
            done[stage] = max(before, done[stage]) + service[stage]
    assert passed(free, service, lag, count) == done


@dataclass(frozen=True)
class Write:
    offset: int
    at: int
    nbytes: int
    imm: int | None


@dataclass(frozen=True)
class Read:
    offset: int
    at: int
    nbytes: int


@dataclass(frozen=True)
class Send:
    message: bytes


@dataclass(frozen=True)
class Spoil:
    """The sender waits for all completions and then overwrites its memory."""

    value: int


places = st.tuples(st.integers(0, ROOM // 2), st.integers(0, ROOM // 2), st.integers(0, ROOM // 2))
writes = st.builds(lambda p, imm: Write(*p, imm), places, st.none() | st.integers(0, 2**32 - 1))
reads = st.builds(lambda p: Read(*p), places)
sends = st.builds(Send, st.binary(max_size=3 * MTU))
programs = st.lists(st.one_of(writes, reads, sends, st.builds(Spoil, st.integers(0, 255))), max_size=14)
wires = st.builds(
    Wire,
    propagation=st.sampled_from([0.0, 1e-6, 5e-6]),
    loss=st.sampled_from([0.0, 0.02, 0.2]),
    reorder=st.sampled_from([0.0, 0.3]),
    detour=st.just(10e-6),
)


class Pair:
    def __init__(self, fabric, *, costs=None, quantum=4 * MTU, mtus=(MTU, MTU), **options):
        self.fabric = fabric
        self.devices = [
            open_device("sim", 4 * ROOM, fabric=fabric, costs=costs, mtu=mtu, quantum=quantum, largest_write=16 * MTU)
            for mtu in mtus
        ]
        options = {"timeout": 3, "retries": 200, "message_bytes": 4 * MTU} | options
        self.here, self.there = (device.channel(ChannelOptions(**options)) for device in self.devices)
        self.here.connect(self.there.address())
        self.there.connect(self.here.address())
        self.local, self.remote = (device.allocate(ROOM, access=EVERYTHING) for device in self.devices)
        self.local.view[:] = bytes(n * 7 % 251 for n in range(ROOM))
        self.remote.view[:] = bytes(n * 11 % 241 for n in range(ROOM))
        self.target = self.devices[1].describe(self.remote)
        self.messages, self.immediates, self.done = [], [], []

    def post(self, step):
        if isinstance(step, Write):
            self.here.write(self.local, self.target, offset=step.offset, at=step.at, nbytes=step.nbytes, imm=step.imm)
        elif isinstance(step, Read):
            self.here.read(self.local, self.target, offset=step.offset, at=step.at, nbytes=step.nbytes)
        else:
            self.here.send(step.message)

    def look(self):
        """Take whatever there is; True if there was something."""
        found = self.here.poll()
        self.done += found
        message, imm = self.there.receive(), self.there.arrived()
        self.messages += [message] if message is not None else []
        self.immediates += [imm] if imm is not None else []
        return bool(found) or message is not None or imm is not None

    def settle(self, posted):
        while len(self.done) < posted:
            if not self.look():
                self.devices[0].idle()
        while self.look():
            pass


@settings(max_examples=60, deadline=None)
@given(programs, wires, st.integers(0, 2**16), st.sampled_from([1, 3, 64]), st.sampled_from(["auto", "packet"]))
def test_random_programs_leave_the_memory_of_a_plain_model(program, wire, seed, depth, grain):
    pair = Pair(Fabric(wire, seed=seed, grain=grain), depth=depth)
    near, far = bytearray(pair.local.view), bytearray(pair.remote.view)
    messages, immediates, posted = [], [], 0
    for step in program:
        if isinstance(step, Spoil):
            pair.settle(posted)
            pair.local.view[:] = near[:] = bytes([step.value]) * ROOM
            continue
        # Memory that an earlier request still reads or writes is not the next one's: that would be a race.
        if isinstance(step, Read):
            pair.settle(posted)
        pair.post(step)
        posted += 1
        if isinstance(step, Write):
            far[step.at : step.at + step.nbytes] = near[step.offset : step.offset + step.nbytes]
            immediates += [step.imm] if step.imm is not None else []
        elif isinstance(step, Read):
            near[step.offset : step.offset + step.nbytes] = far[step.at : step.at + step.nbytes]
            pair.settle(posted)
        else:
            messages.append(step.message)
    pair.settle(posted)

    assert {one.status for one in pair.done} <= {Status.SUCCESS}
    assert [one.ticket for one in pair.done] == list(range(posted))
    assert (pair.messages, pair.immediates) == (messages, immediates)
    assert bytes(pair.local.view) == bytes(near)
    assert bytes(pair.remote.view) == bytes(far)


rates = st.sampled_from([1e9, 3e9, 12.5e9, 50e9])
costs = st.builds(
    Costs,
    bus_rate=rates,
    wire_rate=rates,
    per_packet=st.sampled_from([0.0, 5e-9, 3e-7]),
    bus_latency=st.sampled_from([0.0, 4e-7]),
    header=st.sampled_from([0, 86]),
    contexts=st.sampled_from([1, 1024]),
)


@settings(max_examples=60, deadline=None)
@given(
    program=st.lists(st.one_of(writes, reads, sends), min_size=1, max_size=12),
    costs=costs,
    quantum=st.sampled_from([MTU, 3 * MTU, 64 * MTU]),
    depth=st.sampled_from([2, 64]),
    mtus=st.sampled_from([(256, 256), (512, 256), (1024, 2048)]),
)
def test_bursts_end_at_the_same_picosecond_as_their_packets(program, costs, quantum, depth, mtus):
    ends = {}
    for grain in ("packet", "burst"):
        pair = Pair(Fabric(grain=grain), costs=costs, quantum=quantum, depth=depth, mtus=mtus, timeout=18)
        ends[grain] = []
        for step in program:
            pair.post(step)
        while len(pair.done) < len(program):
            known = len(pair.done) + len(pair.messages) + len(pair.immediates)
            if pair.look():
                count = len(pair.done) + len(pair.messages) + len(pair.immediates) - known
                ends[grain] += [pair.fabric.now] * count
            else:
                pair.devices[0].idle()
        assert all(one.status is Status.SUCCESS for one in pair.done)
        assert {one.operation for one in pair.done} <= set(Operation)
    assert ends["burst"] == ends["packet"]


def test_a_burst_is_fewer_events_than_its_packets():
    events = {}
    for grain in ("packet", "burst"):
        pair = Pair(Fabric(grain=grain), quantum=64 * MTU)
        scheduled = []
        at = pair.fabric.at
        pair.fabric.at = lambda *args, at=at, scheduled=scheduled: (scheduled.append(args), at(*args))
        pair.post(Write(0, 0, 32 * MTU, None))
        pair.settle(1)
        events[grain] = len(scheduled)
    # The doorbell, and for each burst its arrival, its bytes, its acknowledgement; the timer, the completion.
    assert events["burst"] <= 3 * 2 + 6
    assert events["packet"] >= 32
