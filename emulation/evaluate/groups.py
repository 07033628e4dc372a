"""What every group of ranks pays for every part of a program, and who shares links with whom.

A part of a program (see `emulation.program`) is done by many groups at once: a kernel by every rank alone, a collective
by every row of the block, a transfer by every pair. Here each group gets its cost from the cost models, once for each
distinct (block, part); the two evaluators of programs, folded and over ranks, start from these.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from emulation.evaluate.tasks import node_cost
from emulation.graph import Node
from emulation.program import part_node

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from emulation.cost import Cost
    from emulation.program import Block, Item, Part, Program
    from emulation.scenario import Scenario
    from emulation.topology import DirectedLink, Topology


class Incidences(NamedTuple):
    """Which group moves how much over which link, as parallel arrays."""

    group: NDArray[np.int64]
    link: NDArray[np.int64]
    amount: NDArray[np.float64]

    @classmethod
    def of(cls, amounts: Sequence[tuple[tuple[int, float], ...]]) -> Incidences:
        """From (link, amount) pairs of each group."""
        group = np.repeat(np.arange(len(amounts)), [len(pairs) for pairs in amounts])
        flat = np.array([pair for pairs in amounts for pair in pairs], dtype=np.float64).reshape(-1, 2)
        return cls(group, flat[:, 0].astype(np.int64), flat[:, 1])


@dataclass(frozen=True, eq=False)
class Groups:
    """The groups that do one thing together, and what each pays."""

    ranks: NDArray[np.int64]
    """Shape [groups, members]; of a transfer, [pairs, 2]."""
    costs: tuple[Cost, ...]
    """Of each group; groups that pay the same over the same links share the object."""
    action: Node
    """What they do, as a node of the first group."""

    @cached_property
    def weights(self) -> Incidences:
        """Capacity that each group uses of each link per byte of progress; of those that move anything."""
        return Incidences.of([cost.weights if cost.work else () for cost in self.costs])

    @cached_property
    def traffic(self) -> Incidences:
        """Bytes of each group that cross each link."""
        return Incidences.of([cost.traffic for cost in self.costs])


def kind(item: Item) -> tuple[object, ...]:
    """Equal for items that do the same in the same place (a program keeps equal parts once, so identity will do)."""
    return (item.block.fixed, item.stream, id(item.parts)) if item.parts else (item.id,)


class Pricing:
    """Costs of the items of a program on a topology; computed when first asked for, then kept.

    Args:
        program: what is done.
        topology: on what.
        scenario: what is wrong throughout; it has to be even (`Scenario.is_even`).

    Raises:
        WorkloadError: a cost model lacks a figure or a way for a part.
    """

    def __init__(self, program: Program, topology: Topology, scenario: Scenario | None = None) -> None:
        self.program = program
        self.topology = topology
        self.scenario = scenario
        self.links: Sequence[DirectedLink] = scenario.stages[0].links if scenario else topology.links
        self.models = [topology.model(device) for device in program.mesh.devices]
        """Of each rank."""
        self._known: dict[tuple[object, ...], Groups] = {}
        self._chains: dict[tuple[object, ...], list[Groups]] = {}
        self._first: dict[tuple[tuple[str, int], ...], list[int]] = {}
        pace = scenario.compute_factor if scenario else lambda _: 1.0
        self._hardware = [
            (id(model), device.split("/", 1)[0] if model.kind == "cpu" else "", pace(device))
            for device, model in zip(program.mesh.devices, self.models, strict=True)
        ]

    @cached_property
    def kinds(self) -> list[Item]:
        """One item of each that differ in more than what they wait for."""
        return list({kind(item): item for item in self.program.items}.values())

    def of(self, item: Item) -> list[Groups]:
        """For each part of a chain, or for a transfer, an alloc or a free as a whole, its groups."""
        if item.kind == "chain":
            # A program keeps equal parts once, so their identity will do.
            key = (item.block.fixed, id(item.parts))
            if key not in self._chains:
                self._chains[key] = [self._part(item.block, part) for part in item.parts]
            return self._chains[key]
        if item.kind == "transfer":
            return [self._transfer(item)]
        return [self._memory(item)]

    def _part(self, block: Block, part: Part) -> Groups:
        key = (block, part)
        if key not in self._known:
            if part.kind == "collective":
                ranks = block.ranks[block.groups(part.axes)]
                costs = tuple(self._cost(part_node(part, self._names(row), "")) for row in ranks.tolist())
            else:
                ranks = block.ranks[:, None]
                first = self._alike(block)
                kernels = {rank: self._cost(part_node(part, self._names([rank]), "")) for rank in dict.fromkeys(first)}
                costs = tuple([kernels[rank] for rank in first])
            self._known[key] = Groups(ranks, costs, part_node(part, self._names(ranks[0].tolist()), ""))
        return self._known[key]

    def _alike(self, block: Block) -> list[int]:
        """For each rank of a block, the first that runs kernels at the same cost.

        Processors of one model are alike, but for their pace and for what each has to itself: its host's cores.
        """
        if block.fixed not in self._first:
            found: dict[tuple[object, ...], int] = {}
            self._first[block.fixed] = [found.setdefault(self._hardware[rank], rank) for rank in block.ranks.tolist()]
        return self._first[block.fixed]

    def _cost(self, node: Node) -> Cost:
        cost = node_cost(node, self.topology)
        return self.scenario.throughout(node, cost, node_cost) if self.scenario else cost

    def _transfer(self, item: Item) -> Groups:
        assert item.to is not None
        key = (item.block, item.to, item.nbytes)
        if key not in self._known:
            ranks = np.stack([item.block.ranks, item.to.ranks], axis=1)
            nodes = [Node(-1, "transfer", "", self._names(pair), "", (), item.nbytes) for pair in ranks.tolist()]
            self._known[key] = Groups(ranks, tuple(map(self._cost, nodes)), nodes[0])
        return self._known[key]

    def _memory(self, item: Item) -> Groups:
        key = (item.block, item.kind, item.nbytes)
        if key not in self._known:
            ranks = item.block.ranks[:, None]
            node = Node(-1, "alloc", "", self._names(ranks[0].tolist()), "", (), item.nbytes)
            self._known[key] = Groups(ranks, (node_cost(node, self.topology),) * len(ranks), node)
        return self._known[key]

    def _names(self, ranks: Sequence[int]) -> tuple[str, ...]:
        return tuple(self.program.mesh.devices[rank] for rank in ranks)
