"""Faults bound to a cluster: what they do to the costs, and what changes when.

A scenario is a row of *stages*. In each, links have certain capacities, senders know of certain links that are down,
and devices have a certain pace; what holds for the whole run is in every stage. A scenario of one stage only changes
costs, so any evaluator can use it; one of several has to be driven by time (`evaluate.disturbed`).

Restarts after a node's death are not stages: the whole job goes back, so they are a map from undisturbed to elapsed
time (`recovery`). Times of other faults count undisturbed time.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from emulation import draws
from emulation.cost import rings
from emulation.faults import (
    Abort,
    Jitter,
    Latency,
    LinkDown,
    Loss,
    MemoryPressure,
    Mtbf,
    NodeDeath,
    SlowLink,
    SlowRank,
    changes_nothing,
    check,
    devices_named,
    links_named,
    ranks,
)
from emulation.harmed import Capacities, Harmed, graph_of
from emulation.units import picoseconds

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import TypeVar

    from emulation.cost import Cost
    from emulation.faults import Fault
    from emulation.graph import Node
    from emulation.topology import DirectedLink, Route, Topology

    Kind = TypeVar("Kind", bound=Fault)

COMMUNICATES = frozenset({"transfer", "copy", "collective"})


@dataclass(frozen=True)
class Stage:
    """What holds from one moment until the next."""

    since: int
    """Picoseconds."""
    topology: Topology
    """With the capacities that slow links have, and routes around links that are known to be down."""
    staying: Topology
    """The same with the usual routes, for what has no other way."""
    links: Sequence[DirectedLink]
    """Capacities as they are: 0 where a link is down."""
    down: tuple[str, ...]
    """Names of the links that are down."""
    holds: tuple[Mapping[int, float], frozenset[int], Mapping[str, float]]
    """All of it as data: parts of capacities that are left, links that senders avoid, and paces."""

    @property
    def pace(self) -> Mapping[str, float]:
        """Device -> how many times longer its kernels take, beyond `Scenario.compute_factor`."""
        return self.holds[2]

    @property
    def avoided(self) -> frozenset[int]:
        """Numbers of the links that senders know to be down."""
        return self.holds[1]


class Scenario:
    """Faults on a topology.

    Raises:
        FaultError: a fault names what the cluster does not have.
    """

    def __init__(self, faults: Sequence[Fault], topology: Topology, seed: int | str = 0) -> None:
        for error in check(faults, topology):
            raise error
        self.topology = topology
        self.seed = seed
        self._faults = [fault for fault in faults if not changes_nothing(fault)]
        self._links = {
            fault.link: links_named(fault.link, topology)
            for fault in self._faults
            if isinstance(fault, SlowLink | LinkDown | Loss | Latency)
        }
        self._slow_devices = [(fault, self._devices(fault)) for fault in self._of(SlowRank)]

    @property
    def is_static(self) -> bool:
        """Whether it only changes costs: nothing begins, ends or stops at a certain time."""
        return len(self.stages) == 1 and not self.stages[0].down and not self.aborts

    @property
    def is_even(self) -> bool:
        """Whether it treats equal nodes of equal devices equally, so that ranks it leaves alone stay alike."""
        drawn = bool(self._of(Jitter)) or any(fault.jitter for fault in self._of(Latency))
        return self.is_static and not drawn

    @property
    def aborts(self) -> list[NodeDeath]:
        """Deaths that end the run."""
        return [death for death in self.deaths if isinstance(death.policy, Abort)]

    @cached_property
    def deaths(self) -> list[NodeDeath]:
        """Deaths of hosts, in the order of time."""
        return sorted(self._of(NodeDeath), key=lambda death: (death.at, death.host))

    @property
    def mtbf(self) -> list[Mtbf]:
        """Failures at random."""
        return self._of(Mtbf)

    def compute_factor(self, device: str) -> float:
        """How many times longer the kernels of a device take throughout."""
        return math.prod(f.factor for f, devices in self._slow_devices if not _windowed(f) and device in devices)

    def link_factor(self, name: str) -> float:
        """Part of a link's capacity that is left throughout."""
        return self._throughout.get(name, 1.0)

    @cached_property
    def _throughout(self) -> dict[str, float]:
        return {self.topology.links[number].name: factor for number, factor in self._factors_at(None).items()}

    def extra_latency(self, route: Route) -> float:
        """Seconds by which a message over this route arrives later, on average."""
        return sum(self._extra.get(number, 0.0) for number in route.links)

    def pressure(self, device: str) -> int:
        """Bytes of a device's memory that somebody else holds."""
        return sum(f.bytes for f in self._of(MemoryPressure) if device in devices_named(f.device, self.topology.order))

    @cached_property
    def pressed(self) -> frozenset[str]:
        """Devices with less memory than they should have."""
        return frozenset(d for f in self._of(MemoryPressure) for d in devices_named(f.device, self.topology.order))

    @cached_property
    def windowed(self) -> frozenset[str]:
        """Devices whose pace changes during the run."""
        return frozenset(d for fault, devices in self._slow_devices if _windowed(fault) for d in devices)

    def touched_devices(self) -> frozenset[str]:
        """Devices that are not like their equals any more: slow, jittery, short of memory, or on a host that dies."""
        dead = [f"{death.host}/*" for death in self.deaths]
        named = [name for f in self._of(Jitter) for name in f.devices or ["*"]]
        chosen = {d for name in [*dead, *named] for d in devices_named(name, self.topology.order)}
        return frozenset(chosen.union(self.pressed, *(devices for _, devices in self._slow_devices)))

    def touched_links(self) -> frozenset[str]:
        """Names of the links that are not like their equals any more."""
        return frozenset(self.topology.links[number].name for numbers in self._links.values() for number in numbers)

    @cached_property
    def stages(self) -> list[Stage]:
        """Every stage, in the order of time; the first begins at 0."""
        times = {0.0}
        for fault in self._faults:
            if isinstance(fault, SlowRank | SlowLink) and _windowed(fault):
                times |= {fault.from_, fault.from_ if fault.to is None else fault.to}
            elif isinstance(fault, LinkDown):
                times |= {fault.at, fault.at + fault.detection, fault.at if fault.until is None else fault.until}
        found: list[Stage] = []
        for time in sorted(times):
            stage = self._stage(time)
            if not found or found[-1].holds != stage.holds:
                found.append(stage)
        return found

    def _stage(self, time: float) -> Stage:
        outages = [f for f in self._of(LinkDown) if f.at <= time < (math.inf if f.until is None else f.until)]
        known = {n for f in outages if f.at + f.detection <= time for n in self._links[f.link]}
        down = sorted({n for f in outages for n in self._links[f.link]})
        factors = self._factors_at(time)
        staying = Harmed(self.topology, factors) if factors else self.topology
        around = Harmed(self.topology, factors, known) if known else staying
        harmed = factors | dict.fromkeys(down, 0.0)
        links = Capacities(self.topology.links, harmed) if harmed else self.topology.links
        pace: dict[str, float] = {}
        for fault, devices in self._slow_devices:
            if _windowed(fault) and _holds(fault, time):
                pace |= {device: pace.get(device, 1.0) * fault.factor for device in devices}
        names = tuple(self.topology.links[number].name for number in down)
        return Stage(picoseconds(time), around, staying, links, names, (harmed, frozenset(known), pace))

    def _factors_at(self, time: float | None) -> dict[int, float]:
        """Link -> part of its capacity at a time, or (None) throughout; links that have all of theirs are absent."""
        factors: dict[int, float] = {}
        for fault in self._faults:
            if isinstance(fault, Loss):
                found = {number: self._delivered(fault, number) for number in self._links[fault.link]}
            elif isinstance(fault, SlowLink) and (_holds(fault, time) if time is not None else not _windowed(fault)):
                found = dict.fromkeys(self._links[fault.link], fault.factor)
            else:
                continue
            for number, factor in found.items():
                factors[number] = factors.get(number, 1.0) * factor
        return factors

    def _delivered(self, fault: Loss, number: int) -> float:
        """Part of a lossy link's capacity that new packets get: 1 / (1 + p W)."""
        round_trip = self._round_trip(number) if fault.round_trip is None else fault.round_trip
        in_flight = self.topology.links[number].capacity * round_trip / fault.mtu
        return 1 / (1 + fault.p * in_flight)

    def _round_trip(self, number: int) -> float:
        """Seconds there and back between the nearest processors at the two sides of a link."""
        ends = self.topology.links[number].name.split(">")
        if len(ends) != 2:
            return 0.0
        back, forth = self._distance
        return 2 * (back.get(ends[0], 0.0) + self.topology.links[number].latency + forth.get(ends[1], 0.0)) / 1e12

    @cached_property
    def _distance(self) -> tuple[dict[str, float], dict[str, float]]:
        """Latency in picoseconds from the nearest processor to each port, and from each port to the nearest one."""
        import networkx

        graph = graph_of(self.topology)
        processors = list(self.topology.order)
        from_them = networkx.multi_source_dijkstra_path_length(graph, processors, weight="latency")
        to_them = networkx.multi_source_dijkstra_path_length(graph.reverse(), processors, weight="latency")
        return from_them, to_them

    @cached_property
    def _extra(self) -> dict[int, float]:
        """Link -> seconds by which it is late."""
        extra: dict[int, float] = defaultdict(float)
        for fault in self._of(Latency):
            for number in self._links[fault.link]:
                extra[number] += fault.latency
        return dict(extra)

    # What becomes of costs

    def changes(self, node: Node) -> bool:
        """Whether links are so from the beginning that a node costs something else."""
        return self.stages[0].topology is not self.topology and node.kind in COMMUNICATES

    def throughout(self, node: Node, clean: Cost, price: Callable[..., Cost]) -> Cost:
        """What a node costs under an even scenario; `price` asks the cost models (see `on_stage`)."""
        cost = on_stage(node, clean, self.stages[0], price) if self.changes(node) else clean
        return changed(cost, self.stretches([node]).get(0, 1.0), self.delays([node], [clean]).get(0, 0))

    def stretches(self, actions: Sequence[Node]) -> dict[int, float]:
        """Place of an action -> how many times longer it takes throughout, where that is not 1."""
        found: dict[int, float] = {}
        for place, node in enumerate(actions):
            if node.kind == "compute" and (factor := self._compute_factor[node.devices[0]]) != 1:
                found[place] = factor
        for place, factor in self._jitter(actions).items():
            found[place] = found.get(place, 1.0) * factor
        return found

    @cached_property
    def _compute_factor(self) -> dict[str, float]:
        return {device: self.compute_factor(device) for device in self.topology.order}

    def _jitter(self, actions: Sequence[Node]) -> dict[int, float]:
        spread: dict[str, list[Jitter]] = defaultdict(list)
        for fault in self._of(Jitter):
            for name in fault.devices or ["*"]:
                for device in devices_named(name, self.topology.order):
                    spread[device] += [] if fault in spread[device] else [fault]
        streams: dict[tuple[str, str], list[int]] = defaultdict(list)
        for place, node in enumerate(actions):
            if node.kind == "compute" and spread.get(node.devices[0]):
                streams[node.devices[0], node.family].append(place)
        found: dict[int, float] = {}
        for (device, family), places in streams.items():
            sigma = math.hypot(*(f.sigma for f in spread[device] if f.family in {"", family}))
            if sigma:
                luck = draws.lognormal(self.seed, device, f"jitter:{family}", sigma, len(places))
                found |= dict(zip(places, map(float, luck), strict=True))
        return found

    def delays(self, actions: Sequence[Node], costs: Sequence[Cost]) -> dict[int, int]:
        """Place of an action -> picoseconds by which it is late on slow-to-arrive links, where that is not 0."""
        if not self._extra:
            return {}
        found: dict[int, int] = {}
        messages: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for place, (node, cost) in enumerate(zip(actions, costs, strict=True)):
            if node.kind == "collective":
                found[place] = picoseconds(self._delay_of_steps(node.devices, cost.steps))
            elif node.kind in COMMUNICATES:
                messages[node.devices].append(place)
        for (src, dst), places in messages.items():
            for place, seconds in zip(places, self._delays_of_messages(src, dst, len(places)), strict=True):
                found[place] = picoseconds(seconds)
        return {place: late for place, late in found.items() if late}

    def _delays_of_messages(self, src: str, dst: str, count: int) -> Sequence[float]:
        route = self.topology.route(src, dst)
        mean = self.extra_latency(route)
        total = [mean] * count
        for fault in self._of(Latency):
            for number in set(self._links[fault.link]).intersection(route.links) if fault.jitter else ():
                purpose = f"latency:{self.topology.links[number].name}"
                luck = draws.uniform(self.seed, f"{src}>{dst}", purpose, count)
                total = [late + fault.jitter * (2 * float(u) - 1) for late, u in zip(total, luck, strict=True)]
        return total

    def _delay_of_steps(self, group: Sequence[str], steps: tuple[int, int]) -> float:
        """A step pays the mean of what the ring's hops of its kind pay; over its many steps, jitter averages out."""
        if len(group) == 1:
            return 0.0
        return max(self._delay_on_ring(order, steps) for order in rings.rings(group, self.topology))

    def _delay_on_ring(self, order: Sequence[str], steps: tuple[int, int]) -> float:
        late: tuple[list[float], list[float]] = ([], [])
        for src, dst in zip(order, [*order[1:], order[0]], strict=True):
            across = src.split("/", 1)[0] != dst.split("/", 1)[0]
            late[across].append(self.extra_latency(self.topology.route(src, dst)))
        return sum(count * sum(hops) / len(hops) for count, hops in zip(steps, late, strict=True) if hops)

    def _devices(self, fault: SlowRank) -> frozenset[str]:
        if fault.rank is not None:
            return frozenset({ranks(self.topology.profile)[fault.rank]})
        return frozenset(devices_named(fault.device, self.topology.order))

    def _of(self, kind: type[Kind]) -> list[Kind]:
        return [fault for fault in self._faults if isinstance(fault, kind)]


def changed(cost: Cost, stretch: float, delay: int) -> Cost:
    """A cost that takes `stretch` times as long, and begins to move its bytes `delay` picoseconds later."""
    if stretch != 1:
        cost = replace(cost, fixed=round(cost.fixed * stretch), work=cost.work * stretch)
    return replace(cost, fixed=cost.fixed + delay) if delay else cost


def on_stage(node: Node, clean: Cost, stage: Stage, cost: Callable[[Node, Topology, str], Cost]) -> Cost:
    """What a communication costs in a stage, done the way it was chosen on the unharmed cluster.

    Args:
        node: what is communicated.
        clean: its cost on the unharmed cluster.
        stage: what holds now.
        cost: the cost models (`evaluate.tasks.node_cost`).
    """
    try:
        return cost(node, stage.topology, clean.method)
    except ValueError:
        # No other way: it stays on the one it has, and waits there.
        return cost(node, stage.staying, clean.method)


def _windowed(fault: SlowRank | SlowLink) -> bool:
    return fault.from_ > 0 or fault.to is not None


def _holds(fault: SlowRank | SlowLink, time: float) -> bool:
    return fault.from_ <= time and (fault.to is None or time < fault.to)
