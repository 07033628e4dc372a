"""Shapes of fabrics: which switches there are, who is joined to whom, and the ways between them, by arithmetic.

A shape never makes a graph. It numbers switches and trunks (wires between switches) and answers in a few operations
which switch a port hangs on, which switches lie between two others, and where equal ways exist, so that a cluster of
2,048 hosts costs no more to describe than one of two:

=============  ======================================================================================================
`flat`         one switch that every port is joined to
`leaf-spine`   leaves with `leaf_ports` ports to hosts; each is joined to every spine; uplinks =
               leaf_ports / oversubscription
`fat-tree`     the same with two levels, or with three: pods of `pod_leaves` leaves and their spines, and cores between
               pods (Al-Fares, Loukissas, Vahdat: A scalable, commodity data center network architecture, SIGCOMM
               2008); with `rails`, a leaf has one port of each host of its unit, the n-th of every one
`torus`        a router per host, joined to its neighbours in 1 to 3 dimensions; dimension-order routing
=============  ======================================================================================================
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise, product
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

from emulation.layout import host_groups, members
from emulation.refusal import refuse

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from emulation.profile import Profile
    from emulation.refusal import Path
    from emulation.wiring import FabricTopology

Key = TypeVar("Key")
Pick = Callable[[int], int]
"""Of n equal ways, the number of the one to take."""
WHERE: Path = ("fabric", "topology")
NEEDS = {
    "flat": frozenset[str](),
    "leaf-spine": frozenset({"leaf_ports"}),
    "fat-tree": frozenset({"leaf_ports"}),
    "torus": frozenset({"shape"}),
}
MAY = {
    "flat": frozenset[str](),
    "leaf-spine": frozenset({"trunk", "spines", "oversubscription", "rails", "routing"}),
    "fat-tree": frozenset({"trunk", "spines", "oversubscription", "rails", "routing", "levels", "pod_leaves"}),
    "torus": frozenset({"trunk", "routing"}),
}


class Tier(NamedTuple):
    """Switches of one kind, numbered from `first`."""

    name: str
    first: int
    switches: int


class Pairs(NamedTuple):
    """Ports that all send to all others, by their switches; ports of one host do not send to each other."""

    sources: Counter[int]
    targets: Counter[int]
    left_out: Counter[tuple[int, int]]
    """Pairs of ports of one host."""
    flows: float
    """From each port to each."""

    def leaving(self, unit: int) -> dict[int, float]:
        """Flows that leave each unit of so many switches."""
        return self._crossing(self.sources, self.targets, unit, 0)

    def arriving(self, unit: int) -> dict[int, float]:
        """Flows that come to each unit of so many switches from others."""
        return self._crossing(self.targets, self.sources, unit, 1)

    def between(self, one: int, other: int) -> float:
        """Flows from one switch to another."""
        return self.flows * (self.sources[one] * self.targets[other] - self.left_out[one, other])

    def _crossing(self, here: Counter[int], there: Counter[int], unit: int, end: int) -> dict[int, float]:
        inside: Counter[int] = Counter()
        beyond: Counter[int] = Counter()
        for switch, count in here.items():
            inside[switch // unit] += count
        for switch, count in there.items():
            beyond[switch // unit] += count
        total = there.total()
        crossing = {key: count * (total - beyond[key]) for key, count in inside.items()}
        for pair, count in self.left_out.items():
            if pair[0] // unit != pair[1] // unit:
                crossing[pair[end] // unit] -= count
        return {key: self.flows * count for key, count in crossing.items()}


class Shape(Protocol):
    """Switches by number, and the trunks between them."""

    @property
    def tiers(self) -> Sequence[Tier]:
        """Names and numbers of the switches."""

    @property
    def bundle(self) -> int:
        """Lanes of a trunk: parallel wires between two switches count as one."""

    @property
    def trunks(self) -> int:
        """How many trunks there are."""

    def attached(self, host: int, port: int, place: int) -> int:
        """The switch that a host's n-th port hangs on; `place` is the port's number among all ports."""

    def trunk(self, number: int) -> tuple[int, int]:
        """The two switches that a trunk joins."""

    def joining(self, one: int, other: int) -> int | None:
        """Twice the number of the trunk from one switch to another, plus 1 if backwards; None without one."""

    def hops(self, one: int, other: int) -> int:
        """Trunks on a shortest way between the switches of two ports."""

    def way(self, one: int, other: int, pick: Pick) -> list[int]:
        """The switches on a shortest way, both ends included; `pick` chooses among equal ones."""

    def spread(self, patterns: Sequence[Pairs]) -> dict[tuple[int, int], float]:
        """Flows from switch to next switch, those of a pair of ports spread evenly over its equal ways."""


@dataclass(frozen=True)
class Flat:
    """One switch."""

    tiers: tuple[Tier, ...] = (Tier("switch", 0, 1),)
    bundle: int = 1
    trunks: int = 0

    def attached(self, host: int, port: int, place: int) -> int:
        """The one."""
        del host, port, place
        return 0

    def trunk(self, number: int) -> tuple[int, int]:
        """There is none."""
        raise IndexError(number)

    def joining(self, one: int, other: int) -> int | None:
        """There is none."""
        del one, other
        return None

    def hops(self, one: int, other: int) -> int:
        """Always 0."""
        return int(one != other)

    def way(self, one: int, other: int, pick: Pick) -> list[int]:
        """The switch alone."""
        del other, pick
        return [one]

    def spread(self, patterns: Sequence[Pairs]) -> dict[tuple[int, int], float]:
        """Nothing goes from switch to switch."""
        del patterns
        return {}


@dataclass(frozen=True)
class Clos:
    """Leaves, the spines over them and, with more than one pod, the cores over those.

    A spine of a pod is joined to as many cores as the pod has leaves, and to those cores alone that its namesakes in
    other pods are joined to: once the spine is chosen, the core decides the way.
    """

    leaves: int
    spines: int
    """Of one pod."""
    pod: int
    """Leaves of a pod; all of them with two levels."""
    cores: int
    """Over one spine; 0 with two levels."""
    ports: int
    """Host ports of a leaf."""
    rails: int
    """Ports of a host, each on another leaf; 0: ports fill leaf after leaf."""
    bundle: int

    @property
    def pods(self) -> int:
        """How many pods the leaves make."""
        return math.ceil(self.leaves / self.pod)

    @property
    def tiers(self) -> tuple[Tier, ...]:
        """Leaves, then spines pod by pod, then cores spine by spine."""
        spines = self.pods * self.spines
        lower = (Tier("leaf", 0, self.leaves), Tier("spine", self.leaves, spines))
        return (*lower, Tier("core", self.leaves + spines, self.spines * self.cores)) if self.cores else lower

    @property
    def trunks(self) -> int:
        """Leaf to spine, then spine to core."""
        return self.leaves * self.spines + self.pods * self.spines * self.cores

    def attached(self, host: int, port: int, place: int) -> int:
        """With rails, leaf `port` of the host's unit; else the leaf that this place falls on."""
        return host // self.ports * self.rails + port if self.rails else place // self.ports

    def trunk(self, number: int) -> tuple[int, int]:
        """Leaf and spine, or spine and core."""
        lower = self.leaves * self.spines
        if number < lower:
            leaf, spine = divmod(number, self.spines)
            return leaf, self._spine(leaf, spine)
        spine, core = divmod(number - lower, self.cores)
        return self.leaves + spine, self._core(spine % self.spines, core)

    def joining(self, one: int, other: int) -> int | None:
        """By the number of the lower switch."""
        low, high, back = (one, other, 0) if one < other else (other, one, 1)
        tops = self.leaves + self.pods * self.spines
        if low < self.leaves <= high < tops:
            spine = high - self._spine(low, 0)
            return 2 * (low * self.spines + spine) + back if 0 <= spine < self.spines else None
        if self.leaves <= low < tops <= high:
            core = high - self._core((low - self.leaves) % self.spines, 0)
            lower = self.leaves * self.spines + (low - self.leaves) * self.cores
            return 2 * (lower + core) + back if 0 <= core < self.cores else None
        return None

    def hops(self, one: int, other: int) -> int:
        """None on one leaf, two in one pod, four between pods."""
        return 0 if one == other else 2 if one // self.pod == other // self.pod else 4

    def way(self, one: int, other: int, pick: Pick) -> list[int]:
        """Up to the first common tier, and down."""
        if one == other:
            return [one]
        spine = pick(self.spines)
        up, down = self._spine(one, spine), self._spine(other, spine)
        return [one, up, other] if up == down else [one, up, self._core(spine, pick(self.cores)), down, other]

    def spread(self, patterns: Sequence[Pairs]) -> dict[tuple[int, int], float]:
        """What leaves a leaf is divided over its spines, and what leaves a pod over its cores."""
        flows: dict[tuple[int, int], float] = {}
        for up in (True, False):
            crossing = [
                (p.leaving(1), p.leaving(self.pod)) if up else (p.arriving(1), p.arriving(self.pod)) for p in patterns
            ]
            for leaf, count in _total(one for one, _ in crossing).items():
                for spine in range(self.spines):
                    hop = (leaf, self._spine(leaf, spine))
                    flows[hop if up else hop[::-1]] = count / self.spines
            for pod, count in _total(one for _, one in crossing).items() if self.cores else ():
                for spine, core in product(range(self.spines), range(self.cores)):
                    hop = (self._spine(pod * self.pod, spine), self._core(spine, core))
                    flows[hop if up else hop[::-1]] = count / (self.spines * self.cores)
        return {hop: count for hop, count in flows.items() if count}

    def _spine(self, leaf: int, spine: int) -> int:
        return self.leaves + leaf // self.pod * self.spines + spine

    def _core(self, spine: int, core: int) -> int:
        return self.leaves + self.pods * self.spines + spine * self.cores + core


@dataclass(frozen=True)
class Torus:
    """Routers on a grid whose lines are closed to rings."""

    shape: tuple[int, ...]
    bundle: int = 1

    @property
    def tiers(self) -> tuple[Tier, ...]:
        """One router a host; the last dimension varies fastest."""
        return (Tier("router", 0, math.prod(self.shape)),)

    @property
    def trunks(self) -> int:
        """One to the next router in each dimension; a ring of two has one, not two."""
        return sum(self._in_dimension(d) for d in range(len(self.shape)))

    def attached(self, host: int, port: int, place: int) -> int:
        """The host's own router."""
        del port, place
        return host

    def trunk(self, number: int) -> tuple[int, int]:
        """A router and the next one in some dimension."""
        dimension = 0
        while number >= (count := self._in_dimension(dimension)):
            number -= count
            dimension += 1
        stride = self._stride(dimension)
        one = number if self.shape[dimension] > 2 else number // stride * 2 * stride + number % stride
        return one, self._next(one, dimension, 1)

    def joining(self, one: int, other: int) -> int | None:
        """Whichever of the two the other comes after."""
        first = 0
        for dimension, size in enumerate(self.shape):
            for low, high, back in ((one, other, 0), (other, one, 1)):
                if low != high and self._next(low, dimension, 1) == high:
                    if size > 2:
                        return 2 * (first + low) + back
                    low, stride = min(low, high), self._stride(dimension)
                    return 2 * (first + low // (2 * stride) * stride + low % stride) + int(low != one)
            first += self._in_dimension(dimension)
        return None

    def hops(self, one: int, other: int) -> int:
        """The shorter way around in each dimension."""
        return sum(min(d, size - d) for d, size in zip(self._distance(one, other), self.shape, strict=True))

    def way(self, one: int, other: int, pick: Pick) -> list[int]:
        """Dimension by dimension; half-way around, either direction is as good."""
        way = [one]
        for dimension, (distance, size) in enumerate(zip(self._distance(one, other), self.shape, strict=True)):
            if 2 * distance == size and size > 2:
                step = 1 if pick(2) == 0 else -1
            else:
                step = 1 if 2 * distance <= size else -1
            for _ in range(min(distance, size - distance)):
                way.append(self._next(way[-1], dimension, step))
        return way

    def spread(self, patterns: Sequence[Pairs]) -> dict[tuple[int, int], float]:
        """Pair by pair; what may go around either way is divided."""
        pairs = _total({(s, t): p.between(s, t) for s in p.sources for t in p.targets if s != t} for p in patterns)
        flows: dict[tuple[int, int], float] = {}
        for (one, other), count in pairs.items():
            for direction in (0, 1) if count else ():
                way = self.way(one, other, lambda ways, direction=direction: direction % ways)  # type: ignore[misc]
                for hop in pairwise(way):
                    flows[hop] = flows.get(hop, 0.0) + count / 2
        return flows

    def _in_dimension(self, dimension: int) -> int:
        routers = math.prod(self.shape)
        return routers if self.shape[dimension] > 2 else routers // 2

    def _stride(self, dimension: int) -> int:
        return math.prod(self.shape[dimension + 1 :])

    def _distance(self, one: int, other: int) -> Iterator[int]:
        for dimension, size in enumerate(self.shape):
            stride = self._stride(dimension)
            yield (other // stride - one // stride) % size

    def _next(self, router: int, dimension: int, step: int) -> int:
        stride, size = self._stride(dimension), self.shape[dimension]
        here = router // stride % size
        return router + ((here + step) % size - here) * stride


def _total(parts: Iterable[dict[Key, float]]) -> dict[Key, float]:
    total: dict[Key, float] = {}
    for part in parts:
        for key, amount in part.items():
            total[key] = total.get(key, 0.0) + amount
    return total


def ports(profile: Profile, group: str) -> list[list[str]]:
    """For each host that has the group, the names of its ports."""
    return [
        [f"{host.name}{index}/{member}" for member in members(group, host_groups(host))]
        for host in profile.hosts
        if group in host_groups(host)
        for index in range(host.count)
    ]


def shape_of(profile: Profile, topology: FabricTopology) -> Shape:
    """The shape that a profile's `fabric.topology` describes, sized by its hosts.

    Raises:
        PydanticCustomError: with the path of the first mistake.
    """
    _check_keys(topology)
    counts = [(host_groups(host).get(topology.ends, 0), host.count) for host in profile.hosts]
    if not any(count for count, _ in counts):
        known = {name for host in profile.hosts for name in host_groups(host)}
        refuse((*WHERE, "ends"), f"no group {topology.ends!r} in any host", topology.ends, known)
    hosts = sum(number for count, number in counts if count)
    if topology.kind == "flat":
        return Flat()
    if topology.kind == "torus":
        return _torus(topology, hosts)
    return _clos(topology, [count for count, _ in counts if count], hosts, sum(c * n for c, n in counts))


def _check_keys(topology: FabricTopology) -> None:
    given = topology.model_fields_set - {"kind", "ends", "link"}
    for key in sorted(NEEDS[topology.kind] - given):
        refuse(WHERE, f"a {topology.kind} needs `{key}`")
    for key in sorted(given - NEEDS[topology.kind] - MAY[topology.kind]):
        # A profile that was written out has every key: a default says nothing.
        if getattr(topology, key) != type(topology).model_fields[key].default:
            choices = NEEDS[topology.kind] | MAY[topology.kind]
            refuse((*WHERE, key), f"a {topology.kind} has no `{key}`", key, choices)


def _torus(topology: FabricTopology, hosts: int) -> Torus:
    assert topology.shape is not None
    routers = math.prod(topology.shape)
    if hosts > routers:
        shape = " x ".join(map(str, topology.shape))
        refuse((*WHERE, "shape"), f"a torus of {shape} has {routers} routers, one a host; there are {hosts} hosts")
    return Torus(tuple(topology.shape))


def _clos(topology: FabricTopology, counts: Sequence[int], hosts: int, ports: int) -> Clos:
    assert topology.leaf_ports is not None
    if topology.rails and len(set(counts)) > 1:
        found = ", ".join(map(str, counts))
        refuse((*WHERE, "rails"), f"rails need as many {topology.ends!r} in every host, not {found}")
    uplinks = topology.leaf_ports / topology.oversubscription
    if uplinks < 1 or not uplinks.is_integer():
        text = (
            f"{topology.leaf_ports} ports over {topology.oversubscription:g} are {uplinks:g} uplinks of a leaf, not a"
        )
        refuse((*WHERE, "oversubscription"), f"{text} whole number of them")
    spines = topology.spines or int(uplinks)
    if int(uplinks) % spines:
        refuse((*WHERE, "spines"), f"{int(uplinks)} uplinks of a leaf do not divide over {spines} spines")
    rails = counts[0] if topology.rails else 0
    leaves = math.ceil(hosts / topology.leaf_ports) * rails if rails else math.ceil(ports / topology.leaf_ports)
    if topology.levels == 3 and not topology.pod_leaves:
        refuse(WHERE, "a fat tree of three levels needs `pod_leaves`")
    if topology.levels == 2 and topology.pod_leaves:
        refuse((*WHERE, "pod_leaves"), "only a fat tree of three levels (`levels: 3`) has pods")
    pod = topology.pod_leaves or leaves
    cores = pod if topology.levels == 3 else 0
    return Clos(leaves, spines, pod, cores, topology.leaf_ports, rails, int(uplinks) // spines)
