"""Ports, links and routes: a profile as something that can be asked for the way from one device to another.

Every full-duplex link of the profile becomes two directed ones. A route is the chain of directed links a message takes
from one device to another: the one over which 1 MiB would arrive first, hop by hop. Accelerators do not forward other
devices' traffic, so a route passes through switches, adapters and host processors only, and through no third host.

Hosts of one group are equal: ways inside a host are found once per group (`Template`), and those between hosts are the
fabric's business (`emulation.fabric`). Links are numbered by arithmetic and made when somebody looks at them, so that
2,048 hosts cost little more than two: memories first, then host by host, then the fabric.

Each host also has a *memory* link: whatever is copied on the host, or read and written there by an adapter, shares its
bandwidth. Its *cores* are numbered among the links too (last), because kernels share them in the same way.
"""

from __future__ import annotations

import difflib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from emulation import layout
from emulation.fabric import DirectedLink, Explicit, Flow, Woven
from emulation.figures import weakest
from emulation.refusal import refuse
from emulation.template import Template

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from emulation.fabric import Pattern
    from emulation.figures import Grade
    from emulation.processors import DeviceModel
    from emulation.profile import Host, Profile
    from emulation.template import Inner
    from emulation.wiring import LinkKind

__all__ = ["KINDS", "DirectedLink", "Route", "Topology"]

KINDS: tuple[LinkKind, ...] = ("nvlink", "cpu", "pcie", "network")
"""From near to far: a step of a collective costs what its farthest link does."""


@dataclass(frozen=True)
class Route:
    """A chain of directed links, by their numbers in `Topology.links`."""

    links: tuple[int, ...]
    latency: int
    """Picoseconds: the sum over its hops."""
    kind: LinkKind
    """Kind of its farthest link; `cpu` for a device to itself."""
    grade: Grade


class Exit(NamedTuple):
    """A way out of one host and into another: inside the first to a port, and from a port inside the other."""

    seconds: float
    """Inside both."""
    out: tuple[int, ...]
    leaving: str
    arriving: str
    into: tuple[int, ...]


class Place(NamedTuple):
    """Where a device is."""

    host: str
    short: str
    group: int
    """Number of its host group."""
    start: int
    """Number of its host's first link."""
    kind: int
    """Devices of one kind have the same ways out of their hosts and in."""


class Links(Sequence[DirectedLink]):
    """All directed links by number, made when they are looked at and kept."""

    def __init__(self, count: int, make: Callable[[int], DirectedLink]) -> None:
        self._count = count
        self._make = make
        self._made: dict[int, DirectedLink] = {}

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: Any) -> Any:
        made = self._made.get(number)
        if made is None:
            if not 0 <= number < self._count:
                raise IndexError(number)
            made = self._made[number] = self._make(number)
        return made


@dataclass
class Topology:
    """The links of a profile and the routes over them; routes are found once and kept.

    Args:
        profile: the cluster.
        seed: of the choice among equal ways of the fabric. A fabric without such choices has one answer.
    """

    profile: Profile
    seed: int = 0
    links: Sequence[DirectedLink] = field(init=False, repr=False)
    memory: dict[str, int] = field(init=False, repr=False)
    """Host name -> number of its memory link."""
    cores: dict[str, int] = field(init=False, repr=False)
    """Host name -> number of what its kernels share: cores, in core-seconds per second."""
    order: dict[str, int] = field(init=False, repr=False)
    """Name of each processor -> its place; equal for every permutation of ranks."""
    fabric: Woven | Explicit = field(init=False, repr=False)

    def __post_init__(self) -> None:
        profile = self.profile
        self.memory = {name: number for number, name in enumerate(profile.host_names())}
        self.order = {name: number for number, name in enumerate(layout.processors(profile))}
        self._templates = [Template(group) for group in profile.hosts]
        self._hosts: dict[str, tuple[int, int]] = {}
        self._starts: list[tuple[int, int]] = []
        number = len(self.memory)
        for index, template in enumerate(self._templates):
            self._starts.append((number, index))
            for host in range(template.group.count):
                self._hosts[f"{template.group.name}{host}"] = (index, number)
                number += len(template.links)
        self._fabric_start = number
        topology = profile.fabric.topology
        self.fabric = Woven(profile, topology) if topology else Explicit(profile)
        self._cores_start = number + len(self.fabric)
        self.cores = {name: self._cores_start + place for place, name in enumerate(self.memory)}
        self.links = Links(self._cores_start + len(self.cores), self._make)
        self._names = list(self.memory)
        self._exits: dict[tuple[int, str, int, str], list[Exit]] = {}
        self._ports: list[list[str]] = [[] for _ in self._templates]
        self._class: dict[str, object] = {}
        self._places: dict[str, Place] = {}
        self._kinds: dict[tuple[object, ...], int] = {}
        self._chosen: dict[tuple[int, int, bool], tuple[tuple[int, ...], Exit | None]] = {}
        self._hang()
        self._routes: dict[tuple[str, str, str], Route] = {}
        self.known: dict[object, object] = {}
        """What cost models have worked out for groups of this cluster."""
        self._pinned = {(pin.source, pin.target): pin.via for pin in profile.routes}

    def _hang(self) -> None:
        """Note each group's ports, and for each host what its ports hang on."""
        classes: dict[object, int] = {}
        for index, template in enumerate(self._templates):
            ports: dict[str, None] = {}
            for number in range(template.group.count):
                head = f"{template.group.name}{number}"
                hung = self.fabric.ports_of(head, template.members)
                ports.update(dict.fromkeys(hung))
                self._class[head] = classes.setdefault(tuple(hung.items()), len(classes))
            self._ports[index] = [member for member in template.members if member in ports]

    def _make(self, number: int) -> DirectedLink:
        if number < len(self._names):
            name = self._names[number]
            peak = self.profile.models[self.host(name).cpu].memory_bandwidth.peak
            return DirectedLink(f"{name}/memory", "memory", peak.value, 0, peak.grade)
        if number >= self._cores_start:
            name = self._names[number - self._cores_start]
            return DirectedLink(f"{name}/cores", "cores", float(self.host(name).cores), 0, "measured")
        if number >= self._fabric_start:
            return self.fabric.link(number - self._fabric_start)
        start, index = self._starts[bisect_right(self._starts, (number, len(self._starts))) - 1]
        template = self._templates[index]
        host, local = divmod(number - start, len(template.links))
        link = template.links[local]
        left, right = link.name.split(">")
        here = f"{template.group.name}{host}"
        return DirectedLink(f"{here}/{left}>{here}/{right}", *link[1:])

    @property
    def rated(self) -> Sequence[DirectedLink]:
        """The links as the profile has them, whatever has become of them (`harmed`)."""
        return self.links

    @property
    def is_regular(self) -> bool:
        """Whether equal hosts have equal ways, so that what one does can be moved to another."""
        return not self.profile.routes

    def host(self, device: str) -> Host:
        """The host a device is in.

        Raises:
            ValueError: no such host; the message has the nearest name.
        """
        known = self._hosts.get(device.partition("/")[0])
        return self._templates[known[0]].group if known else self.profile.host(device)

    def model(self, device: str) -> DeviceModel:
        """The model of a processor.

        Raises:
            ValueError: not a processor of this cluster.
        """
        if device not in self.order:
            raise ValueError(f"the cluster has no device {device!r}")
        head, short = device.split("/", 1)
        template = self._templates[self._hosts[head][0]]
        return self.profile.models[template.group.cpu if short == layout.CPU else template.devices[short]]

    def is_host(self, device: str) -> bool:
        """Whether a device is a host's own processor, whose memory is the host's."""
        return device.endswith(f"/{layout.CPU}")

    def lanes(self, left: str, right: str) -> int:
        """Lanes of the link that joins two members of one host; 0 where none does."""
        (head, one), (other, two) = left.split("/", 1), right.split("/", 1)
        return self._templates[self._hosts[head][0]].lanes.get((one, two), 0) if head == other else 0

    def joining(self, left: str, right: str) -> int | None:
        """Number of the directed link from one member of the cluster to another; None where there is none."""
        (head, _, one), (other, _, two) = left.partition("/"), right.partition("/")
        if head == other and head in self._hosts:
            index, start = self._hosts[head]
            local = self._templates[index].direct.get((one, two))
            return None if local is None else start + local
        number = self.fabric.joining(left, right)
        return None if number is None else self._fabric_start + number

    def link_number(self, name: str) -> int:
        """Number of the directed link `host0/gpu0>host0/nvswitch0`, of the memory `host0/memory` or of `host0/cores`.

        Raises:
            ValueError: there is none; the message has the nearest name.
        """
        left, arrow, right = name.partition(">")
        number = self.joining(left, right) if arrow else self._of_host(left)
        if number is None or self.links[number].name != name:
            near = difflib.get_close_matches(name, self._near(left, arrow), n=1, cutoff=0.0)
            raise ValueError(f"the cluster has no link {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        return number

    def _of_host(self, name: str) -> int | None:
        host, _, what = name.partition("/")
        return {"memory": self.memory, "cores": self.cores}.get(what, {}).get(host)

    def next_to(self, name: str) -> list[str]:
        """Members that a link leads to from this one."""
        head, _, short = name.partition("/")
        inner: list[str] = []
        if head in self._hosts:
            inner = [f"{head}/{b}" for a, b in self._templates[self._hosts[head][0]].direct if a == short]
        return [*inner, *self.fabric.next_to(name)]

    def _near(self, left: str, arrow: str) -> Iterable[str]:
        if not arrow:
            return [f"{host}/memory" for host in self.memory]
        near = self.next_to(left)
        if not near:
            heads = difflib.get_close_matches(left.partition("/")[0], self._hosts, n=1, cutoff=0.0)
            members = [f"{head}/{member}" for head in heads for member in self._templates[0].members]
            left = next(iter(difflib.get_close_matches(left, members, n=1, cutoff=0.0)), left)
            near = self.next_to(left)
        return [f"{left}>{right}" for right in near]

    def route(self, src: str, dst: str, label: str = "") -> Route:
        """The way from one device to another; no links at all from a device to itself.

        Args:
            src: name of a processor.
            dst: the same.
            label: of the flow; flows of other labels may take other ones of equal ways.

        Raises:
            ValueError: no chain of links joins them.
        """
        key = (src, dst, label)
        found = self._routes.get(key)
        if found is None:
            found = self._routes[key] = self._find(src, dst, label)
        return found

    def _find(self, src: str, dst: str, label: str) -> Route:
        if src == dst:
            return Route((), 0, "cpu", "measured")
        numbers = self.crossed(src, dst, label)
        links = [self.links[number] for number in numbers]
        kind = max((link.kind for link in links), key=lambda kind: KINDS.index(kind))
        latency = sum(link.latency for link in links)
        return Route(numbers, latency, kind, weakest(link.grade for link in links))  # type: ignore[arg-type]

    def crossed(self, src: str, dst: str, label: str = "") -> tuple[int, ...]:
        """Numbers of the links of a route, without looking at them; see `route`."""
        if src == dst:
            return ()
        if (src, dst) in self._pinned:
            hops = [src, *self._pinned[src, dst], dst]
            return tuple(number for pair in pairwise(hops) if (number := self.joining(*pair)) is not None)
        here, there = self._where(src), self._where(dst)
        inner, exit = self._shortest(here, there)
        start, start_two, first = here.start, there.start, self._fabric_start
        if exit is None:
            return tuple([start + n for n in inner])
        pick = Flow(self.seed, src, dst, label)
        way = self.fabric.way(f"{here.host}/{exit.leaving}", f"{there.host}/{exit.arriving}", pick)
        return (*[start + n for n in exit.out], *[first + n for n in way], *[start_two + n for n in exit.into])

    def exit(self, src: str, dst: str) -> Exit:
        """How a message leaves one host and comes into another.

        Raises:
            ValueError: no chain of links over the fabric joins them.
        """
        exit = self._shortest(self._where(src), self._where(dst))[1]
        if exit is None:
            raise ValueError(f"{src!r} and {dst!r} are not joined over the fabric")
        return exit

    def spread(self, patterns: Sequence[Pattern]) -> dict[int, float]:
        """Flows on the links of the fabric, those of a pair of ports spread evenly over its equal ways."""
        return {self._fabric_start + number: count for number, count in self.fabric.spread(patterns).items()}

    def group_of(self, device: str) -> int:
        """Number of the host group a device is in."""
        return self._hosts[device.partition("/")[0]][0]

    def start(self, device: str) -> int:
        """Number of the first link inside the host of a device; equal hosts have theirs in equal order."""
        return self._hosts[device.partition("/")[0]][1]

    def moved(self, number: int, device: str, other: str) -> int:
        """The link inside (or memory of) one host that is what `number` is in an equal host."""
        if number < len(self.memory):
            return self.memory[other.partition("/")[0]]
        return number + self.start(other) - self.start(device)

    def _where(self, device: str) -> Place:
        found = self._places.get(device)
        if found is None:
            head, _, short = device.partition("/")
            if head not in self._hosts:
                self.profile.host(device)
                raise ValueError(f"the cluster has no device {device!r}")
            index, start = self._hosts[head]
            # Hosts that hang on the same switches leave and enter alike.
            kind = self._kinds.setdefault((index, short, self._class[head]), len(self._kinds))
            found = self._places[device] = Place(head, short, index, start, kind)
        return found

    def _shortest(self, here: Place, there: Place) -> tuple[tuple[int, ...], Exit | None]:
        """The way inside a host, or out of it and into another."""
        same = here.start == there.start and here.host == there.host
        key = (here.kind, there.kind, same)
        found = self._chosen.get(key)
        if found is None:
            inner = self._templates[here.group].ways(here.short).get(there.short) if same else None
            exits = self._ways_out(here.group, here.short, there.group, there.short)
            exit = self._best_exit(exits, here.host, there.host, inner)
            if exit is None and inner is None:
                ends = f"{here.host}/{here.short}", f"{there.host}/{there.short}"
                text = f"no chain of links leads from {ends[0]!r} to {ends[1]!r}"
                raise ValueError(f"{text} except through accelerators or other hosts")
            found = self._chosen[key] = (inner.links if inner else (), exit)
        return found

    def _best_exit(self, exits: Sequence[Exit], head: str, other: str, inner: Inner | None) -> Exit | None:
        """The shortest way out and in, if it is shorter than the one inside."""
        best, found = inner.seconds if inner else float("inf"), None
        for exit in exits:
            if exit.seconds + self.fabric.least >= best:
                break
            leaving, arriving = f"{head}/{exit.leaving}", f"{other}/{exit.arriving}"
            if leaving == arriving or not (self.fabric.hangs(leaving) and self.fabric.hangs(arriving)):
                continue
            total = exit.seconds + self.fabric.seconds(leaving, arriving)
            if total < best:
                best, found = total, exit
        return found

    def _ways_out(self, index: int, src: str, other: int, dst: str) -> list[Exit]:
        """Ways out of one host and into another, the shortest inside first, equal ones in the order of ports."""
        key = (index, src, other, dst)
        if key not in self._exits:
            leaving = self._templates[index].ways(src)
            arriving = self._templates[other]
            back = {port: inner for port in self._ports[other] if (inner := arriving.ways(port).get(dst)) is not None}
            self._exits[key] = sorted(
                (
                    Exit(leaving[p].seconds + inner.seconds, leaving[p].links, p, q, inner.links)
                    for p in self._ports[index]
                    if p in leaving
                    for q, inner in back.items()
                ),
                key=lambda exit: exit.seconds,
            )
        return self._exits[key]


def check_routes(profile: Profile) -> None:
    """Refuse routes that pass over links that do not exist.

    Raises:
        PydanticCustomError: with the path of the first mistake.
    """
    topology = Topology(profile)
    for index, pin in enumerate(profile.routes):
        for key, name in (("from", pin.source), ("to", pin.target)):
            if name not in topology.order:
                refuse(("routes", index, key), f"the cluster has no device {name!r}", name, topology.order)
        here = pin.source
        for step, name in enumerate([*pin.via, pin.target]):
            if topology.joining(here, name) is None:
                path = ("routes", index, "via", step) if step < len(pin.via) else ("routes", index, "to")
                refuse(path, f"no link leads from {here!r} to {name!r}", name, topology.next_to(here))
            here = name
