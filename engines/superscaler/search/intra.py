"""Every operator of a stage split for the least time, and what that comes to in each unit of the model.

Memory enters at a price (a Lagrange multiplier): at price zero the solution is the fastest; as the price rises, what
needs less memory wins. A few prices are tried, so what is found need not be the best that fits.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

from engines.superscaler.search.elimination import reduce
from engines.superscaler.search.ilp import solve as solve_program
from engines.superscaler.search.problem import cheapest

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from engines.superscaler.plan import Group
    from engines.superscaler.search.options import Option
    from engines.superscaler.search.problem import Setting, Tables
    from engines.superscaler.search.weights import Keeping


class UnitCost(NamedTuple):
    """What one unit of the model takes on a device."""

    forward: float = 0.0
    """Seconds per micro-batch, communication included."""
    backward: float = 0.0
    """The same, with what is recomputed."""
    once: float = 0.0
    """Seconds per step: gradients summed, weights updated."""
    persistent: float = 0.0
    """Bytes of weights, gradients and optimizer state."""
    kept: float = 0.0
    """Bytes kept for each micro-batch between its forward and backward pass."""
    peak: float = 0.0
    """Bytes needed beside that while it is computed."""


@dataclass(frozen=True)
class Solution:
    """Choices for every operator of a stage."""

    tables: Tables
    setting: Setting
    chosen: Mapping[str, Option]
    weights: Mapping[str, Keeping]
    """Parameter -> how it is kept."""
    units: Mapping[int, UnitCost]
    """Number of the unit -> its cost."""
    bound: float
    """Seconds per step, memory at its price: nothing is cheaper."""
    objective: float
    """Of this solution, in the same terms."""
    groups: Mapping[int, tuple[Group, ...]] = field(default_factory=dict)
    """Number of the unit -> its groups, where they are other than the whole unit recomputed."""

    @property
    def total(self) -> UnitCost:
        """Of all units; the peak is the largest."""
        return total(list(self.units.values()))


def total(units: Sequence[UnitCost]) -> UnitCost:
    """Of several units on one device; the peak is the largest."""
    sums = [sum(values) for values in zip(*units, strict=True)]
    return UnitCost(*sums[:5], max(unit.peak for unit in units))


def fastest(tables: Tables, ops: Collection[str], setting: Setting) -> Solution:
    """The optimum at a price of memory: exact, by elimination; what that leaves over, by an integer program."""
    problem = tables.problem(ops, setting)
    reduced = reduce(problem)
    core, bound = ({}, 0.0) if not reduced.core.choices else solve_program(reduced.core)
    picked = reduced.completed(core)
    return evaluated(tables, ops, setting, picked, reduced.constant + bound, problem.cost(picked))


def evaluated(
    tables: Tables, ops: Collection[str], setting: Setting, picked: Mapping[str, int], bound: float, objective: float
) -> Solution:
    """What choices come to, unit by unit."""
    bench, graph, among = tables.bench, tables.bench.graph, set(ops)
    holders = bench.holders(among, recompute=setting.recompute)
    everything = bench.holders(among, recompute=False) if setting.recompute else holders
    sums: dict[int, list[float]] = {}
    inner: dict[int, float] = {}
    chosen: dict[str, Option] = {}
    weights: dict[str, Keeping] = {}
    for op in graph.ops:
        if op.name not in among:
            continue
        unit = bench.unit_of[op.name]
        again = bench.again(op.name, recompute=setting.recompute)
        own = sums.setdefault(unit, [0.0] * 6)
        node, number = tables.node(op), picked[op.name]
        chosen[op.name] = node.options[number]
        forward, backward = node.forward[number], node.backward[number]
        kept = sum(node.kept[place][number] for place in holders.get(op.name, ()))
        inside = sum(node.kept[place][number] for place in everything.get(op.name, ())) + node.extra[number]
        for tensor in dict.fromkeys(op.inputs):
            producer = graph.producer.get(tensor)
            if producer in among:
                edge = tables.edge(graph.by_name[producer], op, tensor)
                pair = picked[producer], number
                forward, backward = forward + edge.forward[pair], backward + edge.backward[pair]
                inside += edge.copy[pair]
                kept += 0.0 if again else edge.copy[pair]
        if again:
            inner[unit] = inner.get(unit, 0.0) + inside
            backward += forward
        else:
            kept += node.extra[number]
        for place, ways in zip(bench.owned[op.name], node.keepings[number], strict=True):
            way = weights[op.inputs[place]] = cheapest(ways, setting)
            own[2] += way.once
            own[1] += way.each
            own[3] += way.nbytes
        own[0] += forward
        own[1] += backward
        own[4] += kept
        own[5] = max(own[5], node.workspace[number])
    units = {unit: UnitCost(*own[:5], own[5] + inner.get(unit, 0.0)) for unit, own in sorted(sums.items())}
    return Solution(tables, setting, chosen, weights, units, bound, objective)


def frontier(tables: Tables, ops: Collection[str], setting: Setting, prices: Sequence[float]) -> list[Solution]:
    """Solutions at rising prices of memory, each different from the one before."""
    found: list[Solution] = []
    for price in prices:
        solution = fastest(tables, ops, replace(setting, price=price))
        if not found or solution.total != found[-1].total:
            found.append(solution)
    return found
