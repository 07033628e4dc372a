"""Folding: ranks that cannot be told apart are evaluated once.

Two ranks are in one *class* if they have the same hardware, do the same items, and meet groups of the same classes at
the same cost: the coarsest equitable partition, found by colour refinement (Weisfeiler and Leman's first step; McKay:
Practical graph isomorphism, 1981). Members of a class do everything at the same time, so one of them stands for all;
a slow rank is in a class of its own and splits only the classes of those it meets.

Links fold as well: two links over which the same classes move the same amounts are one link class, and one of them
stands for all. An activity of a folded graph is what *all groups* of a class move over the links of that class, so that
groups that share an adapter still share it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from emulation.evaluate.fusing import Fuser, Stage
from emulation.evaluate.groups import Groups, Pricing, kind
from emulation.evaluate.partition import Partition
from emulation.evaluate.tasks import Tasks
from emulation.graph import Node, Workload

if TYPE_CHECKING:
    from collections.abc import Sequence

    from emulation.cost import Cost
    from emulation.program import Item, Program
    from emulation.topology import DirectedLink, Topology


@dataclass(frozen=True)
class GroupClass:
    """Groups of one part that cannot be told apart."""

    representatives: tuple[int, ...]
    """Ranks, one for each class that the group has members of; of a transfer, source and destination."""
    cost: Cost
    """Of all these groups together, over link classes."""


class Folded:
    """A program folded on a topology.

    Args:
        program: what is done.
        topology: on what.
        pricing: its costs, where they are known already.
        fuse: whether parts of a chain that share nothing with anybody become one node.

    Raises:
        WorkloadError: a cost model lacks a figure or a way for a part.
    """

    def __init__(
        self, program: Program, topology: Topology, pricing: Pricing | None = None, *, fuse: bool = True
    ) -> None:
        self.program = program
        self._fuse = fuse
        self.pricing = pricing or Pricing(program, topology)
        self._priced = [self.pricing.of(item) for item in program.items]
        priced = (groups for item in self.pricing.kinds for groups in self._priced[item.id])
        distinct = list({id(groups): groups for groups in priced}.values())
        partition = Partition(self.pricing, distinct)
        self.colours = partition.ranks
        """Class of each rank, shape [ranks]."""
        first: dict[int, int] = {}
        for rank, colour in enumerate(self.colours.tolist()):
            first.setdefault(colour, rank)
        self._first = first
        counts = np.bincount(self.colours)
        self.fold = {program.mesh.devices[rank]: int(counts[colour]) for colour, rank in first.items()}
        """Device of a representative -> how many ranks it stands for."""
        links = partition.link_classes()
        self.links_fold = tuple(count for _, count in links)
        """For each link class, how many links it stands for."""
        self.item_of: list[int] = []
        """For each node, the item of the program that it is of."""
        classes = {id(groups): self._classes(groups, partition) for groups in distinct}
        self.tasks = self._lowered(topology, [link for link, _ in links], classes)

    def _classes(self, groups: Groups, partition: Partition) -> list[GroupClass]:
        """One cost for all groups of a class together, over link classes."""
        weights = partition.folded(groups, groups.weights)
        traffic = partition.folded(groups, groups.traffic)
        first = np.unique(partition.alike(groups), return_index=True)[1].tolist()
        return [
            GroupClass(self._stand_for(groups, place), replace(groups.costs[place], weights=over, traffic=carried))
            for place, over, carried in zip(first, weights, traffic, strict=True)
        ]

    def _stand_for(self, groups: Groups, place: int) -> tuple[int, ...]:
        colours = self.colours[groups.ranks[place]].tolist()
        return tuple(self._first[colour] for colour in dict.fromkeys(colours))

    def _lowered(
        self, topology: Topology, links: Sequence[DirectedLink], classes: dict[int, list[GroupClass]]
    ) -> Tasks:
        work, costs = Workload(self.program.name), []
        last: list[dict[int, int]] = []
        compiled: dict[tuple[object, ...], list[list[Stage]]] = {}
        fuser = Fuser(links, self._lanes(classes) if self._fuse else {})
        for item, priced in zip(self.program.items, self._priced, strict=True):
            key = kind(item)
            if key not in compiled:
                compiled[key] = self._stages(item, priced, classes, fuser)
            reached: dict[int, int] = {}
            for alike in compiled[key]:
                for stage in alike:
                    after: set[int] = set()
                    for rank in stage.representatives:
                        here = reached.get(rank)
                        after.update(
                            [here] if here is not None else (last[n][rank] for n in item.after if rank in last[n])
                        )
                    number = self._append(work, item, stage, sorted(after), last)
                    costs.append(stage.cost)
                    self.item_of.append(item.id)
                    reached |= dict.fromkeys(stage.representatives, number)
            last.append(reached)
        hosts = frozenset(device.split("/", 1)[0] for device in self.program.mesh.devices)
        return Tasks(work, topology, costs=costs, links=links, scenario=self.pricing.scenario, hosts=hosts)

    def _stages(
        self, item: Item, priced: Sequence[Groups], classes: dict[int, list[GroupClass]], fuser: Fuser
    ) -> list[list[Stage]]:
        """What an item comes to: for each part (or run of fused parts), a stage for each of its group classes."""
        if not item.parts:
            (groups,) = priced
            return [[Stage(c.representatives, groups.action.kind, c.cost) for c in classes[id(groups)]]]
        parts = [
            [
                Stage(c.representatives, groups.action.kind, c.cost, part.name, groups.action)
                for c in classes[id(groups)]
            ]
            for part, groups in zip(item.parts, priced, strict=True)
        ]
        return list(fuser.fused(parts, item.stream))

    def _lanes(self, classes: dict[int, list[GroupClass]]) -> dict[int, set[tuple[object, ...]]]:
        """Link class -> the lanes (representatives and stream) of everything that moves over it."""
        found: dict[int, set[tuple[object, ...]]] = {}
        for item in self.pricing.kinds:
            for groups in self._priced[item.id]:
                for alike in classes[id(groups)]:
                    lane = (alike.representatives, item.stream) if item.stream else (item.id,)
                    for link, _ in alike.cost.weights:
                        found.setdefault(link, set()).add(lane)
        return found

    def _append(self, work: Workload, item: Item, stage: Stage, after: list[int], last: list[dict[int, int]]) -> int:
        names = tuple(self.program.mesh.devices[rank] for rank in stage.representatives)
        if item.kind == "alloc":
            return work.alloc(names[0], item.nbytes, after=after, name=item.name)
        if item.kind == "free":
            return work.free(last[item.frees][stage.representatives[0]], after=after, name=item.name)
        if item.kind == "transfer":
            return work.transfer(names[0], names[-1], item.nbytes, after=after, name=item.name, stream=item.stream)
        node = stage.action
        nbytes, op = (node.nbytes, node.op) if node else (0, "")
        kind = node.kind if node else "chain"
        return work.append(Node(-1, kind, stage.name or item.name, names, item.stream, (), nbytes, op=op), after)
