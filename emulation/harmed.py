"""A cluster on which some links have only a part of their capacity, and others are gone.

Nobody knows of slow links, so routes stay what they are. A route over a link that is gone is replaced by the shortest
of those that are left; equal ones are not chosen among by hashing then.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from emulation.topology import Topology

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from emulation.fabric import DirectedLink


class Capacities(Sequence["DirectedLink"]):
    """Links of which some have a part of their capacity (none at all: 0)."""

    def __init__(self, links: Sequence[DirectedLink], factors: Mapping[int, float]) -> None:
        self._links = links
        self.factors = factors
        self._changed = {n: links[n]._replace(capacity=links[n].capacity * part) for n, part in factors.items()}

    def __len__(self) -> int:
        return len(self._links)

    def __getitem__(self, number: Any) -> Any:
        return self._changed.get(number) or self._links[number]


class Harmed(Topology):
    """The same cluster with some links slow and others gone; everything else is shared with the unharmed one."""

    def __init__(self, unharmed: Topology, factors: Mapping[int, float], gone: Collection[int] = ()) -> None:
        # Its templates, ports and fabric are the unharmed one's own: they are only read.
        self.__dict__.update(unharmed.__dict__)
        self._unharmed = unharmed
        self._routes = {}
        self.known = {}
        self.gone = frozenset(gone)
        self.links = Capacities(unharmed.links, factors)

    @property
    def rated(self) -> Sequence[DirectedLink]:
        """The links as the profile has them."""
        return self._unharmed.links

    @property
    def is_regular(self) -> bool:
        """Whether equal hosts have equal ways: not where a link is gone."""
        return not self.gone and self._unharmed.is_regular

    def group_of(self, device: str) -> int:
        """Number of the host group a device is in; where a link is gone, each host is a group of its own."""
        return self.memory[device.partition("/")[0]] if self.gone else super().group_of(device)

    def lanes(self, left: str, right: str) -> int:
        """Lanes of the link that joins two members of one host; 0 where none does."""
        return 0 if self.joining(left, right) in self.gone else super().lanes(left, right)

    def crossed(self, src: str, dst: str, label: str = "") -> tuple[int, ...]:
        """Numbers of the links of a route; see `route`."""
        numbers = self._unharmed.crossed(src, dst, label)
        return self._around(src, dst) if self.gone.intersection(numbers) else numbers

    def _around(self, src: str, dst: str) -> tuple[int, ...]:
        import networkx

        heads = {"fabric", src.partition("/")[0], dst.partition("/")[0]}

        def seconds(left: str, right: str, link: dict[str, Any]) -> float | None:
            through = left == src or left not in self.order or self.is_host(left)
            inside = right.partition("/")[0] in heads
            return link["seconds"] if through and inside and link["number"] not in self.gone else None

        try:
            path = networkx.dijkstra_path(self._graph, src, dst, weight=seconds)
        except networkx.NetworkXNoPath:
            raise ValueError(f"no chain of links is left from {src!r} to {dst!r}") from None
        return tuple(self._graph.edges[pair]["number"] for pair in pairwise(path))

    @cached_property
    def _graph(self) -> Any:
        return graph_of(self._unharmed)


def graph_of(topology: Topology) -> Any:
    """All ports and links as a networkx graph: `number`, `seconds` and `latency` (picoseconds) on each edge."""
    import networkx

    graph = networkx.DiGraph()
    graph.add_nodes_from(topology.order)
    for number, link in enumerate(topology.links):
        left, arrow, right = link.name.partition(">")
        # Of parallel links the fastest is the one that is used.
        if arrow and topology.joining(left, right) == number:
            graph.add_edge(left, right, number=number, seconds=link.seconds, latency=link.latency)
    return graph
