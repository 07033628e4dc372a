"""Ports, links and routes: a profile as a graph.

Every full-duplex link of the profile becomes two directed ones. A route is the chain of directed links a message takes
from one device to another: the one over which 1 MiB would arrive first, hop by hop. Accelerators do not forward other
devices' traffic, so a route passes through switches, adapters and host processors only.

Each host also has a *memory* link: whatever is copied on the host, or read and written there by an adapter, shares its
bandwidth.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from emulation import layout
from emulation.figures import weakest
from emulation.units import picoseconds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from emulation.figures import Grade
    from emulation.profile import DeviceModel, Host, LinkKind, Profile

PROBE_BYTES = 2**20
KINDS: tuple[LinkKind, ...] = ("nvlink", "cpu", "pcie", "network")
"""From near to far: a step of a collective costs what its farthest link does."""


class DirectedLink(NamedTuple):
    """One direction of a link, or a host's memory."""

    name: str
    kind: LinkKind | str
    capacity: float
    """Payload bytes per second."""
    latency: int
    """Picoseconds."""
    grade: Grade


@dataclass(frozen=True)
class Route:
    """A chain of directed links, by their numbers in `Topology.links`."""

    links: tuple[int, ...]
    latency: int
    """Picoseconds: the sum over its hops."""
    kind: LinkKind
    """Kind of its farthest link; `cpu` for a device to itself."""
    grade: Grade


@dataclass
class Topology:
    """The links of a profile and the routes over them; routes are found once and kept."""

    profile: Profile
    links: list[DirectedLink] = field(default_factory=list)
    memory: dict[str, int] = field(default_factory=dict)
    """Host name -> number of its memory link."""
    direct: dict[tuple[str, str], int] = field(default_factory=dict)
    """(from, to) -> number of the link that joins them; of parallel ones the fastest."""
    lanes: dict[tuple[str, str], int] = field(default_factory=dict)
    _graph: Any = None
    _paths: dict[str, Any] = field(default_factory=dict)
    _routes: dict[tuple[str, str], Route] = field(default_factory=dict)
    order: dict[str, int] = field(default_factory=dict)
    """Name of each processor -> its place; equal for every permutation of ranks."""

    def __post_init__(self) -> None:
        for name in self.profile.host_names():
            model = self.profile.models[self.profile.host(name).cpu]
            self.memory[name] = len(self.links)
            peak = model.memory_bandwidth.peak
            self.links.append(DirectedLink(f"{name}/memory", "memory", peak.value, 0, peak.grade))
        for wire in layout.wires(self.profile):
            for ends in ((wire.left, wire.right), (wire.right, wire.left)):
                self._join(ends, wire.link)
        self.order = {name: number for number, name in enumerate(layout.processors(self.profile))}

    def _join(self, ends: tuple[str, str], link: Any) -> None:
        known = self.direct.get(ends)
        if known is not None and self.links[known].capacity >= link.capacity:
            return
        self.direct[ends] = len(self.links)
        self.lanes[ends] = link.lanes
        latency = picoseconds(link.latency.value)
        self.links.append(DirectedLink(f"{ends[0]}>{ends[1]}", link.kind, link.capacity, latency, link.grade))

    def host(self, device: str) -> Host:
        """The host a device is in."""
        return self.profile.host(device)

    def model(self, device: str) -> DeviceModel:
        """The model of a processor.

        Raises:
            ValueError: not a processor of this cluster.
        """
        if device not in self.order:
            raise ValueError(f"the cluster has no device {device!r}")
        host, short = self.host(device), device.split("/", 1)[1]
        if short == layout.CPU:
            return self.profile.models[host.cpu]
        return self.profile.models[next(d.model for d in host.devices if d.name == short.rstrip("0123456789"))]

    def is_host(self, device: str) -> bool:
        """Whether a device is a host's own processor, whose memory is the host's."""
        return device.endswith(f"/{layout.CPU}")

    def route(self, src: str, dst: str) -> Route:
        """The way from one device to another; no links at all from a device to itself.

        Raises:
            ValueError: no chain of links joins them.
        """
        key = (src, dst)
        if key not in self._routes:
            self._routes[key] = self._find(src, dst)
        return self._routes[key]

    def _find(self, src: str, dst: str) -> Route:
        if src == dst:
            return Route((), 0, "cpu", "measured")
        hops = self._shortest(src).get(dst)
        if hops is None:
            raise ValueError(f"no chain of links leads from {src!r} to {dst!r} without passing through an accelerator")
        numbers = tuple(self.direct[pair] for pair in pairwise(hops))
        links = [self.links[number] for number in numbers]
        kind = max((link.kind for link in links), key=lambda kind: KINDS.index(kind))
        latency = sum(link.latency for link in links)
        return Route(numbers, latency, kind, weakest(link.grade for link in links))  # type: ignore[arg-type]

    def _shortest(self, src: str) -> dict[str, Sequence[str]]:
        import networkx

        if self._graph is None:
            self._graph = networkx.DiGraph(list(self.direct))
        if src not in self._graph:
            return {}

        def seconds(left: str, right: str, _: object) -> float | None:
            if left != src and left in self.order and not self.is_host(left):
                return None
            link = self.links[self.direct[left, right]]
            return link.latency / 1e12 + PROBE_BYTES / link.capacity

        if src not in self._paths:
            self._paths[src] = networkx.single_source_dijkstra_path(self._graph, src, weight=seconds)
        found: dict[str, Sequence[str]] = self._paths[src]
        return found
