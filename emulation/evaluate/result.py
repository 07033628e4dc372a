"""What an evaluation tells: times, exposed communication, links, memory, and why it took so long."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from emulation.band import combined
from emulation.evaluate import levels
from emulation.evaluate.outcome import Outcome
from emulation.figures import weakest
from emulation.io.chrome_trace import Slice
from emulation.units import PICOSECONDS_PER_SECOND, render

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from emulation.cost import Cost, Family
    from emulation.evaluate.events import Run
    from emulation.evaluate.folding import Folded
    from emulation.evaluate.sweep import Sweep
    from emulation.figures import Grade
    from emulation.io.chrome_trace import Level
    from emulation.recovery import Goodput
    from emulation.residuals import Spread

COMMUNICATION = frozenset({"p2p", "collective"})
Interval = tuple[int, int]


@dataclass(frozen=True)
class LinkUse:
    """What went over one direction of a link (or a host's memory)."""

    name: str
    bytes: float
    """With the overhead of protocols; for a memory, bytes read plus bytes written."""
    busy: float
    """Seconds in which anything moved over it."""
    capacity: float
    """Bytes per second."""
    count: int = 1
    """How many links were used just like this one (of a folded program); bytes are those of one."""


@dataclass(frozen=True)
class MemoryUse:
    """The most that was held on a device at once, and whether it has that much."""

    peak: int
    capacity: int
    usable: int
    """Capacity less what fragmentation keeps."""

    @property
    def fits(self) -> bool:
        """Whether it would not run out of memory."""
        return self.peak <= self.usable


@dataclass(frozen=True)
class CriticalPath:
    """The chain of nodes that the end waited for; each starts when the one before it ends."""

    nodes: tuple[int, ...]
    shares: dict[Family, float]
    """Part of the time spent in each family of models, of one."""


@dataclass(frozen=True)
class Communication:
    """Seconds in which a device communicated: while it did nothing else, and beside other work."""

    exposed: float
    overlapped: float


class Result:
    """The outcome of `simulate`. Times are seconds from the start; `picoseconds` is exact."""

    def __init__(self, run: Run | Sweep, folded: Folded | None = None) -> None:
        self._run = run
        self.fold: Mapping[str, int] = folded.fold if folded else {}
        """Of a folded program: device of a representative -> how many ranks it stands for; empty for a workload."""
        self._links_fold = folded.links_fold if folded else ()
        self._item_of = folded.item_of if folded else ()
        self._topology = run.tasks.topology
        self._tasks = run.tasks
        self._nodes = run.tasks.workload.nodes
        self._cost_of: list[Cost] = [run.tasks.costs[task] for task in run.tasks.task_of]
        self.picoseconds: int = max(run.end, default=0)
        self.events: int = run.events

    @property
    def seconds(self) -> float:
        """The step time: when the last node ends, or when the run was aborted."""
        return _seconds(self.picoseconds)

    def start(self, node: int) -> float:
        """When a node started."""
        return _seconds(self._run.start[node])

    def finish(self, node: int) -> float:
        """When a node ended; infinite if it never did."""
        if node in self._run.unfinished:
            return math.inf
        return _seconds(self._run.end[node])

    def item(self, node: int) -> int:
        """Of a folded program: the item that a node is of. Of a workload: the node itself."""
        return self._item_of[node] if self.fold else node

    def method(self, node: int) -> str:
        """How a collective was carried out (`ring-simple`); empty for other nodes."""
        return self._cost_of[node].method

    @cached_property
    def outcome(self) -> Outcome:
        """How it ended: completed unless a fault, or a lack of memory, had it end otherwise."""
        ended = self._run.outcome or Outcome("completed", self.seconds)
        full = [(moment, device) for device, (_, moment) in self._held.items() if moment is not None]
        moment, device = min(full, default=(0, ""))
        if not full or (not ended.ended and ended.at < _seconds(moment)):
            return ended
        use = self.peak_memory[device]
        short = f"{device} would need {render(use.peak, 'B')} of {render(use.usable, 'B')}"
        return Outcome("out of memory", _seconds(moment), short, ended.restarts, ended.lost)

    @cached_property
    def goodput(self) -> Goodput | None:
        """What part of a long job's time is useful, where the faults give a time between failures."""
        scenario = self._tasks.scenario
        if scenario is None or not scenario.mtbf:
            return None
        from emulation import layout
        from emulation.recovery import goodput

        profile = self._topology.profile
        return goodput(scenario.mtbf[0], profile.host_names(), layout.devices(profile), scenario.seed)

    @cached_property
    def grade(self) -> Grade:
        """Weakest grade of any figure that was used."""
        return weakest(cost.grade for cost in self._cost_of)

    @cached_property
    def critical_path(self) -> CriticalPath:
        """The chain from the first node to the last, and where its time went."""
        nodes = tuple(self._chain())
        time: dict[Family, int] = {}
        for node in nodes:
            for piece in self._pieces(node):
                family = piece.cost.family
                time[family] = time.get(family, 0) + piece.end - piece.start
        return CriticalPath(nodes, {family: spent / max(1, self.picoseconds) for family, spent in sorted(time.items())})

    def band(self, seconds: float | None = None) -> tuple[float, float]:
        """The claimed 80 % band around a duration (default: the step time), by the critical path's models."""
        middle = self.seconds if seconds is None else seconds
        time: dict[tuple[Family, Grade, Spread | None], float] = {}
        for node in self.critical_path.nodes:
            for piece in self._pieces(node):
                key = (piece.cost.family, piece.cost.grade, piece.cost.spread)
                time[key] = time.get(key, 0.0) + (piece.end - piece.start) / max(1, self.picoseconds)
        faster, slower = combined(time)
        return middle * math.exp(-faster), middle * math.exp(slower)

    @cached_property
    def links(self) -> tuple[LinkUse, ...]:
        """Every link that carried anything, in the order of the topology."""
        carried: dict[int, float] = {}
        busy = dict(self._run.busy)
        for cost in self._tasks.costs:
            for link, amount in cost.traffic:
                carried[link] = carried.get(link, 0.0) + amount
            for piece in cost.pieces:
                # Nobody else uses the links of a fused part, so its times on them simply add up.
                for link, _ in piece.cost.weights:
                    busy[link] = busy.get(link, 0) + piece.duration - piece.cost.fixed
        return tuple(
            LinkUse(found.name, carried[link], _seconds(busy.get(link, 0)), found.capacity, self._fold_of(link))
            for link, found in enumerate(self._tasks.links)
            if carried.get(link)
        )

    @cached_property
    def peak_memory(self) -> dict[str, MemoryUse]:
        """For each device on which memory was allocated: its peak, and whether it fits."""
        return {device: self._memory_use(device, peak) for device, (peak, _) in self._held.items()}

    @cached_property
    def _held(self) -> dict[str, tuple[int, int | None]]:
        """Device -> the most it held at once, and the moment when that became more than it has."""
        end, unfinished = self._run.end, self._run.unfinished
        nodes = [node for node in self._nodes if node.kind in _MEMORY and node.id not in unfinished]
        held: dict[str, int] = {}
        found: dict[str, tuple[int, int | None]] = {}
        for moment, taken, number in sorted((end[node.id], node.kind == "alloc", node.id) for node in nodes):
            device, nbytes = self._nodes[number].devices[0], self._nodes[number].nbytes
            held[device] = held.get(device, 0) + (nbytes if taken else -nbytes)
            peak, full = found.get(device, (0, None))
            if full is None and not self._memory_use(device, held[device]).fits:
                full = moment
            found[device] = max(peak, held[device]), full
        return {device: found[device] for device in sorted(found)}

    @cached_property
    def communication(self) -> dict[str, Communication]:
        """For each device that communicated: how much of it stood alone, and how much beside other work."""
        talk: dict[str, list[Interval]] = {}
        work: dict[str, list[Interval]] = {}
        for node in self._nodes:
            for piece in self._pieces(node.id) if node.devices else ():
                kind = talk if piece.cost.family in COMMUNICATION else work
                for device in dict.fromkeys(node.devices):
                    kind.setdefault(device, []).append((piece.start, piece.end))
        found: dict[str, Communication] = {}
        for device in sorted(talk):
            talking = _union(talk[device])
            both = _length(_overlap(talking, _union(work.get(device, []))))
            found[device] = Communication(_seconds(_length(talking) - both), _seconds(both))
        return found

    def busy(self, stream: str) -> dict[str, float]:
        """Seconds in which something ran on a stream, by device; of a folded program, by representative."""
        found: dict[str, int] = {}
        for node in self._nodes:
            for device in node.devices if node.stream == stream else ():
                found[device] = found.get(device, 0) + self._duration(node.id)
        return {device: _seconds(spent) for device, spent in found.items()}

    @cached_property
    def slices(self) -> tuple[Slice, ...]:
        """The timeline: one slice for each node and device that took time, in node order."""
        return tuple(self.timeline())

    def timeline(self) -> Iterator[Slice]:
        """The slices one by one, for a timeline too long to hold."""
        for node in self._nodes:
            if node.kind == "recv":
                continue
            thread = node.stream or (f"to {node.devices[1]}" if len(node.devices) == 2 else node.kind)
            for piece in self._pieces(node.id):
                cost = piece.cost
                args: dict[str, Any] = {"node": node.id, "kind": piece.kind, "grade": cost.grade}
                args |= {"bytes": node.nbytes} if node.nbytes else {}
                args |= {"method": cost.method} if cost.method else {}
                places = node.devices[:1] if cost.family in {"p2p", "memory"} else tuple(dict.fromkeys(node.devices))
                start, duration = _seconds(piece.start), _seconds(piece.end - piece.start)
                to = node.devices[-1] if cost.family == "p2p" and node.devices[-1] != node.devices[0] else ""
                for device in places:
                    yield Slice(device, thread, piece.name or node.name or piece.kind, start, duration, args, to)

    def levels(self) -> Iterator[Level]:
        """The timeline's counters: memory held on each device, and what moved over the busiest links."""
        yield from levels.memory(self._tasks, self._run.end)
        first = (meeting.nodes[0] for meeting in self._tasks.meetings)
        yield from levels.links(self._tasks, ((p.cost, p.start, p.end) for node in first for p in self._pieces(node)))

    def names(self) -> dict[str, str]:
        """Of a folded program: how a representative is shown, with the number of ranks it stands for."""
        return {device: f"{device} (x{count})" for device, count in self.fold.items() if count > 1}

    def summary(self) -> dict[str, Any]:
        """Everything but the timeline, as JSON values; equal runs give equal summaries."""
        low, high = self.band()
        return {
            "picoseconds": self.picoseconds,
            "grade": self.grade,
            "band": [low, high],
            "events": self.events,
            "outcome": [self.outcome.state, self.outcome.at, self.outcome.lost],
            "critical_path": {"nodes": list(self.critical_path.nodes), "shares": self.critical_path.shares},
            "communication": {d: [c.exposed, c.overlapped] for d, c in self.communication.items()},
            "links": [[use.name, use.bytes, use.busy] for use in self.links],
            "memory": {d: [m.peak, m.usable, m.fits] for d, m in self.peak_memory.items()},
        }

    def _duration(self, node: int) -> int:
        return self._run.end[node] - self._run.start[node]

    def _chain(self) -> list[int]:
        if not self._nodes:
            return []
        end = self._run.end
        node = max(range(len(end)), key=lambda n: (end[n], -n))
        chain = [node]
        while True:
            partners = self._tasks.meetings[self._tasks.task_of[node]].nodes
            earlier = sorted({first for partner in partners for first in self._tasks.before[partner]})
            if not earlier:
                return chain[::-1]
            node = max(earlier, key=lambda n: (end[n], -n))
            chain.append(node)

    def _memory_use(self, device: str, peak: int) -> MemoryUse:
        capacity = self._topology.model(device).memory.value
        if self._tasks.scenario is not None:
            capacity = max(0, capacity - self._tasks.scenario.pressure(device))
        reserve = self._topology.profile.fragmentation.value
        return MemoryUse(peak, capacity, int(capacity * (1 - reserve)))

    def _pieces(self, node: int) -> Iterator[_Timed]:
        """The parts of a node that took time: itself, or what it was fused from."""
        cost, now = self._cost_of[node], self._run.start[node]
        for piece in cost.pieces:
            if piece.duration:
                yield _Timed(piece.name, piece.kind, piece.cost, now, now + piece.duration)
            now += piece.duration
        if not cost.pieces and self._run.end[node] > now:
            found = self._nodes[node]
            yield _Timed(found.name, found.op or found.kind, cost, now, self._run.end[node])

    def _fold_of(self, link: int) -> int:
        return self._links_fold[link] if self._links_fold else 1


class _Timed(NamedTuple):
    """A stretch of time one thing took; picoseconds."""

    name: str
    kind: str
    cost: Cost
    start: int
    end: int


_MEMORY = frozenset({"alloc", "free"})


def _seconds(picoseconds: int) -> float:
    return picoseconds / PICOSECONDS_PER_SECOND


def _union(intervals: Iterable[Interval]) -> list[Interval]:
    merged: list[Interval] = []
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _overlap(left: list[Interval], right: list[Interval]) -> list[Interval]:
    found: list[Interval] = []
    i = j = 0
    while i < len(left) and j < len(right):
        start, end = max(left[i][0], right[j][0]), min(left[i][1], right[j][1])
        if start < end:
            found.append((start, end))
        if left[i][1] < right[j][1]:
            i += 1
        else:
            j += 1
    return found


def _length(intervals: Iterable[Interval]) -> int:
    return sum(end - start for start, end in intervals)
