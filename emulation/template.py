"""The inside of a host: what is equal in all hosts of a group is worked out once, by the members' short names."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from emulation import layout
from emulation.fabric import DirectedLink, directed

if TYPE_CHECKING:
    from emulation.profile import Host


class Inner(NamedTuple):
    """A way inside a host."""

    seconds: float
    """How long the probe takes over it."""
    links: tuple[int, ...]
    """By their numbers in the template."""


class Template:
    """What is equal in all hosts of a group: links by number, and the ways over them by members' short names."""

    def __init__(self, group: Host) -> None:
        self.group = group
        self.links: list[DirectedLink] = []
        self.direct: dict[tuple[str, str], int] = {}
        """(from, to) -> number of the link that joins them; of parallel ones the fastest."""
        self.lanes: dict[tuple[str, str], int] = {}
        self.devices = {f"{device.name}{n}": device.model for device in group.devices for n in range(device.count)}
        groups = layout.host_groups(group)
        self.members = [member for name in groups for member in layout.members(name, groups)]
        self._graph: Any = None
        self._ways: dict[str, dict[str, Inner]] = {}
        for wire in layout.host_wires(group):
            for left, right in ((wire.left, wire.right), (wire.right, wire.left)):
                self._add(left, right, directed(left, right, wire.link, wire.link.kind, wire.lanes), wire.lanes)

    def _add(self, left: str, right: str, link: DirectedLink, lanes: int) -> None:
        known = self.direct.get((left, right))
        if known is not None and self.links[known].capacity >= link.capacity:
            return
        self.direct[left, right] = len(self.links)
        self.lanes[left, right] = lanes
        self.links.append(link)

    def ways(self, src: str) -> dict[str, Inner]:
        """From one member to every other that can be reached without passing through an accelerator."""
        import networkx

        if src in self._ways:
            return self._ways[src]
        if self._graph is None:
            self._graph = networkx.DiGraph(list(self.direct))
        found = {src: Inner(0.0, ())}
        if src in self._graph:

            def seconds(left: str, right: str, _: object) -> float | None:
                return None if left != src and left in self.devices else self.links[self.direct[left, right]].seconds

            distance, paths = networkx.single_source_dijkstra(self._graph, src, weight=seconds)
            for name, path in paths.items():
                found[name] = Inner(distance[name], tuple(self.direct[pair] for pair in pairwise(path)))
        self._ways[src] = found
        return found
