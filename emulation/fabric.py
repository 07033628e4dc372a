"""Ways between hosts: from a port of one over the fabric to a port of another.

Two fabrics answer the same questions. `Woven` follows a shape (`emulation.topologies`) and makes no graph; `Explicit`
has the links a profile lists and finds the shortest ways between its switches (Dijkstra, once per switch). Ports do
not forward, and neither do hosts: a way between two hosts passes through no third.

Equal ways of a `Woven` fabric are chosen by destination (the port's number modulo the ways at each fork: d-mod-k, as
InfiniBand's subnet managers route fat trees; Zahavi: Fat-tree routing and node ordering providing contention free
traffic for MPI global collectives, JPDC 2012), or, as always in an `Explicit` one, by equal-cost multi-path hashing:
the choice is a function of seed, ends and flow label alone, taken from BLAKE2b, so that one flow keeps its way and
another cluster size or run order changes nobody's.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from emulation import layout
from emulation.topologies import Pairs, ports, shape_of
from emulation.units import picoseconds

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from emulation.figures import Grade
    from emulation.profile import Profile
    from emulation.topologies import Pick
    from emulation.wiring import FabricTopology, LinkKind, Wiring

PROBE_BYTES = 2**20
"""The message whose arrival time measures how far two ends are apart."""


class DirectedLink(NamedTuple):
    """One direction of a link, or a host's memory."""

    name: str
    kind: LinkKind | str
    capacity: float
    """Payload bytes per second."""
    latency: int
    """Picoseconds."""
    grade: Grade

    @property
    def seconds(self) -> float:
        """How long the probe takes over it."""
        return self.latency / 1e12 + PROBE_BYTES / self.capacity


def directed(left: str, right: str, link: Wiring, kind: LinkKind, lanes: int) -> DirectedLink:
    """One direction of a wire."""
    return DirectedLink(f"{left}>{right}", kind, link.over(lanes), picoseconds(link.latency.value), link.grade)


class Flow:
    """The equal-cost choices of one flow, in the order in which they come up."""

    def __init__(self, seed: int, src: str, dst: str, label: str) -> None:
        self._key = f"{seed}\0{src}\0{dst}\0{label}".encode()
        self._bits = 0

    def __call__(self, ways: int) -> int:
        """The number of the way to take, of `ways` equal ones."""
        if ways == 1:
            return 0
        if not self._bits:
            # 128 bits outlast the choices of any route; a leading 1 marks where they end.
            self._bits = 1 << 128 | int.from_bytes(hashlib.blake2b(self._key, digest_size=16).digest(), "big")
        self._bits, choice = divmod(self._bits, ways)
        return choice


class Digits:
    """The choices that a port's number makes for all that is sent to it."""

    def __init__(self, place: int) -> None:
        self._left = place

    def __call__(self, ways: int) -> int:
        """The number of the way to take, of `ways` equal ones."""
        self._left, choice = divmod(self._left, ways)
        return choice


class Pattern(NamedTuple):
    """Every source sends `flows` to every target of another host; no host has two of either."""

    sources: list[str]
    targets: list[str]
    flows: float


def add(flows: dict[int, float], link: int, amount: float) -> None:
    """Add to a link's flows."""
    flows[link] = flows.get(link, 0.0) + amount


class Woven:
    """A fabric whose links follow from its shape: access links by port, then trunks by the shape's numbers."""

    def __init__(self, profile: Profile, topology: FabricTopology) -> None:
        self.shape = shape_of(profile, topology)
        self.ports: list[str] = []
        self._place: dict[str, int] = {}
        self._switch: list[int] = []
        for host, names in enumerate(ports(profile, topology.ends)):
            for port, name in enumerate(names):
                place = self._place[name] = len(self.ports)
                self.ports.append(name)
                self._switch.append(self.shape.attached(host, port, place))
        link, trunk = topology.link, topology.trunk or topology.link
        self._access = directed("", "", link, link.kind, link.lanes)
        self._trunk = directed("", "", trunk, trunk.kind, trunk.lanes * self.shape.bundle)
        self._tiers = tuple(self.shape.tiers)
        self._by_destination = topology.routing == "by-destination"
        self.least = 2 * self._access.seconds
        """How long the probe takes at least between two ports."""

    def __len__(self) -> int:
        return 2 * (len(self.ports) + self.shape.trunks)

    def link(self, number: int) -> DirectedLink:
        """An even number leads from a port or up, the odd one after it back."""
        wire, back = divmod(number, 2)
        if wire < len(self.ports):
            ends = (self.ports[wire], self.switch_name(self._switch[wire]))
            link = self._access
        else:
            low, high = self.shape.trunk(wire - len(self.ports))
            ends = (self.switch_name(low), self.switch_name(high))
            link = self._trunk
        left, right = reversed(ends) if back else ends
        return DirectedLink(f"{left}>{right}", *link[1:])

    def switch_name(self, switch: int) -> str:
        """`fabric/leaf3`."""
        tier = next(tier for tier in reversed(self._tiers) if switch >= tier.first)
        return f"fabric/{tier.name}{switch - tier.first}"

    def switch_of(self, port: str) -> int:
        """The switch a port hangs on."""
        return self._switch[self._place[port]]

    def joining(self, left: str, right: str) -> int | None:
        """Number of the link from one member to another; None where there is none."""
        for port, switch, back in ((left, right, 0), (right, left, 1)):
            if port in self._place:
                return 2 * self._place[port] + back if self._number(switch) == self.switch_of(port) else None
        one, other = self._number(left), self._number(right)
        return None if one is None or other is None else self._between(one, other)

    def next_to(self, name: str) -> Iterable[str]:
        """Members that a link leads to from this one."""
        if name in self._place:
            return [self.switch_name(self.switch_of(name))]
        switch = self._number(name)
        if switch is None:
            return []
        hosts = [port for port, one in zip(self.ports, self._switch, strict=True) if one == switch]
        every = (number for tier in self._tiers for number in range(tier.first, tier.first + tier.switches))
        return hosts + [self.switch_name(one) for one in every if self.shape.joining(switch, one) is not None]

    def hangs(self, port: str) -> bool:
        """Whether a member of a host is a port of this fabric."""
        return port in self._place

    def ports_of(self, host: str, members: Sequence[str]) -> dict[str, object]:
        """Those members of a host that are ports, with what they hang on."""
        found = ((member, self._place.get(f"{host}/{member}")) for member in members)
        return {member: self._switch[place] for member, place in found if place is not None}

    def seconds(self, src: str, dst: str) -> float:
        """How long the probe takes from port to port."""
        hops = self.shape.hops(self.switch_of(src), self.switch_of(dst))
        return self.least + hops * self._trunk.seconds

    def way(self, src: str, dst: str, pick: Pick) -> list[int]:
        """The links from port to port."""
        if self._by_destination:
            pick = Digits(self._place[dst])
        switches = self.shape.way(self.switch_of(src), self.switch_of(dst), pick)
        trunks = [self._between(one, other) for one, other in pairwise(switches)]
        return [2 * self._place[src], *[n for n in trunks if n is not None], 2 * self._place[dst] + 1]

    def spread(self, patterns: Sequence[Pattern]) -> dict[int, float]:
        """Flows on each link, those of a pair of ports spread evenly over its equal ways."""
        flows: dict[int, float] = {}
        pairs: list[Pairs] = []
        for sources, targets, amount in patterns:
            own = {port.partition("/")[0]: port for port in targets}
            left_out: Counter[tuple[int, int]] = Counter()
            for port in sources:
                other = own.get(port.partition("/")[0])
                left_out.update([(self.switch_of(port), self.switch_of(other))] if other else [])
                add(flows, 2 * self._place[port], amount * (len(targets) - (other is not None)))
            heads = {port.partition("/")[0] for port in sources}
            for head, port in own.items():
                add(flows, 2 * self._place[port] + 1, amount * (len(sources) - (head in heads)))
            counts = [Counter(map(self.switch_of, side)) for side in (sources, targets)]
            pairs.append(Pairs(counts[0], counts[1], left_out, amount))
        for (low, high), count in self.shape.spread(pairs).items():
            number = self._between(low, high)
            assert number is not None
            flows[number] = count
        return flows

    def _between(self, one: int, other: int) -> int | None:
        trunk = self.shape.joining(one, other)
        return None if trunk is None else 2 * len(self.ports) + trunk

    def _number(self, name: str) -> int | None:
        head, _, short = name.partition("/")
        for tier in self._tiers:
            place = short.removeprefix(tier.name)
            if head == "fabric" and place != short and place.isdecimal() and int(place) < tier.switches:
                return tier.first + int(place)
        return None


class Explicit:
    """A fabric whose links are listed."""

    def __init__(self, profile: Profile) -> None:
        self._links: list[DirectedLink] = []
        self._direct: dict[tuple[str, str], int] = {}
        self._next: dict[str, list[str]] = {}
        self._graph: Any = None
        self._found: dict[str, tuple[dict[str, list[str]], dict[str, float]]] = {}
        for wire in layout.fabric_wires(profile):
            for left, right in ((wire.left, wire.right), (wire.right, wire.left)):
                self._add(left, right, directed(left, right, wire.link, wire.link.kind, wire.lanes))
        self.least = min((link.seconds for link in self._links), default=0.0)
        """How long the probe takes at least between two ports."""

    def _add(self, left: str, right: str, link: DirectedLink) -> None:
        known = self._direct.get((left, right))
        if known is not None and self._links[known].capacity >= link.capacity:
            return
        if known is None:
            self._next.setdefault(left, []).append(right)
        self._direct[left, right] = len(self._links)
        self._links.append(link)

    def __len__(self) -> int:
        return len(self._links)

    def link(self, number: int) -> DirectedLink:
        """One of them."""
        return self._links[number]

    def joining(self, left: str, right: str) -> int | None:
        """Number of the link from one member to another; of parallel ones the fastest."""
        return self._direct.get((left, right))

    def next_to(self, name: str) -> Iterable[str]:
        """Members that a link leads to from this one."""
        return self._next.get(name, [])

    def hangs(self, port: str) -> bool:
        """Whether a member of a host is a port of this fabric."""
        return port in self._next

    def ports_of(self, host: str, members: Sequence[str]) -> dict[str, object]:
        """Those members of a host that are ports, with what they hang on; joined to other ports, nobody is like it."""
        found = ((member, self._next.get(f"{host}/{member}")) for member in members)
        return {
            member: tuple(ends) if all(end.startswith("fabric/") for end in ends) else host
            for member, ends in found
            if ends is not None
        }

    def seconds(self, src: str, dst: str) -> float:
        """How long the probe takes from port to port; infinite where nothing joins them."""
        return self._best(src, dst)[0]

    def way(self, src: str, dst: str, pick: Pick) -> list[int]:
        """The links from port to port."""
        _, first, last = self._best(src, dst)
        names = [dst]
        if last:
            names.append(last)
            before, _ = self._from(first)
            while names[-1] != first:
                choices = before[names[-1]]
                names.append(choices[pick(len(choices))])
        names = [src, *reversed(names)]
        return [self._direct[pair] for pair in pairwise(names)]

    def spread(self, patterns: Sequence[Pattern]) -> dict[int, float]:
        """Flows on each link, those of a pair of ports spread evenly over its equal ways."""
        flows: dict[int, float] = {}
        between: dict[tuple[str, str], float] = {}
        for sources, targets, amount in patterns:
            # Between ports that hang on the same switches the ways are the same but for their own links.
            for senders in self._alike(sources):
                for receivers in self._alike(targets):
                    self._send(senders, receivers, amount, flows, between)
        for (first, last), amount in between.items():
            self._divide(first, last, amount, flows)
        return flows

    def _alike(self, ports: Sequence[str]) -> list[list[str]]:
        classes: dict[object, list[str]] = {}
        for port in ports:
            switches = tuple(self._next[port])
            key = switches if all(name.startswith("fabric/") for name in switches) else port
            classes.setdefault(key, []).append(port)
        return list(classes.values())

    def _send(
        self,
        senders: list[str],
        receivers: list[str],
        amount: float,
        flows: dict[int, float],
        between: dict[Any, float],
    ) -> None:
        heads = [{port.partition("/")[0] for port in side} for side in (senders, receivers)]
        count = len(senders) * len(receivers) - len(heads[0] & heads[1])
        if not count:
            return
        _, first, last = self._best(senders[0], receivers[-1])
        if not first:
            add(flows, self._direct[senders[0], receivers[-1]], amount * count)
            return
        between[first, last] = between.get((first, last), 0.0) + amount * count
        for port in senders:
            add(flows, self._direct[port, first], amount * (len(receivers) - (port.partition("/")[0] in heads[1])))
        for port in receivers:
            add(flows, self._direct[last, port], amount * (len(senders) - (port.partition("/")[0] in heads[0])))

    def _divide(self, first: str, last: str, amount: float, flows: dict[int, float]) -> None:
        """Divide flows between two switches at every fork, from the far end back."""
        parts = {last: amount}
        before, distance = self._from(first) if first != last else ({}, {})
        for switch in sorted(distance, key=lambda name: -distance[name]):
            for name in before[switch] if switch in parts else ():
                share = parts[switch] / len(before[switch])
                parts[name] = parts.get(name, 0.0) + share
                add(flows, self._direct[name, switch], share)

    def _best(self, src: str, dst: str) -> tuple[float, str, str]:
        """Seconds of the shortest way, and its first and last switch; none where a link joins the ports."""
        direct = self._direct.get((src, dst))
        best = (math.inf if direct is None else self._links[direct].seconds, "", "")
        for first in self._next[src]:
            for last in self._next[dst]:
                if first.startswith("fabric/") and last.startswith("fabric/"):
                    between = 0.0 if first == last else self._from(first)[1].get(last, math.inf)
                    total = self._cost(src, first) + between + self._cost(last, dst)
                    if total < best[0]:
                        best = (total, first, last)
        return best

    def _cost(self, left: str, right: str) -> float:
        return self._links[self._direct[left, right]].seconds

    def _from(self, switch: str) -> tuple[dict[str, list[str]], dict[str, float]]:
        """For each switch, the last ones on the shortest ways to it, and how long the probe takes."""
        if switch not in self._found:
            import networkx

            if self._graph is None:
                self._graph = networkx.DiGraph()
                for left, right in self._direct:
                    if left.startswith("fabric/") and right.startswith("fabric/"):
                        self._graph.add_edge(left, right, seconds=self._cost(left, right))
            if switch not in self._graph:
                return {}, {}
            self._found[switch] = networkx.dijkstra_predecessor_and_distance(self._graph, switch, weight="seconds")
        return self._found[switch]
