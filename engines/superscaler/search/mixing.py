"""Recomputing some layers and keeping what the others need: as much memory as there is buys back recomputation.

Both are read off one choice of splits, so that a mix costs what its layers cost, with no solve of its own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from engines.superscaler.search.intra import evaluated

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engines.superscaler.search.intra import Solution, UnitCost

SHARES = (0.0625, 0.125, 0.25, 0.5, 0.75, 0.875)
"""Of the layers that may be kept, those that are."""


def mixed(solution: Solution, shares: Sequence[float] = SHARES) -> list[Solution]:
    """A solution that recomputes all layers, with shares of them kept instead.

    Those are kept first whose recomputation takes longest for the bytes it saves. Equal layers are kept evenly spread
    over the model, so that each stage that it is cut into has its share.
    """
    tables, bench = solution.tables, solution.tables.bench
    picked = {op: tables.node(bench.graph.by_name[op]).options.index(option) for op, option in solution.chosen.items()}
    setting = replace(solution.setting, recompute=False)
    kept = evaluated(tables, list(solution.chosen), setting, picked, solution.bound, solution.objective).units
    layers: dict[tuple[UnitCost, UnitCost], list[int]] = {}
    for unit, cost in solution.units.items():
        if bench.units[unit].is_layer and cost.backward > kept[unit].backward:
            layers.setdefault((cost, kept[unit]), []).append(unit)
    ranked = sorted(layers, key=lambda pair: (_worth(*pair), layers[pair]), reverse=True)
    order = [unit for pair in ranked for unit in _spread(layers[pair])]
    found = []
    for count in sorted({int(share * len(order)) for share in shares} - {0}):
        own = order[:count]
        units = {unit: kept[unit] if unit in own else cost for unit, cost in solution.units.items()}
        found.append(replace(solution, units=units, groups={**solution.groups, **dict.fromkeys(own, ())}))
    return found


def _worth(again: UnitCost, kept: UnitCost) -> float:
    """Seconds saved for each byte that is kept."""
    return (again.forward + again.backward - kept.forward - kept.backward) / max(1.0, kept.kept - again.kept)


def _spread(units: Sequence[int]) -> list[int]:
    """In an order of which every beginning is spread over all of them: by their places' bits, last one first."""
    width = max(1, (len(units) - 1).bit_length())
    return [unit for _, unit in sorted((int(f"{place:0{width}b}"[::-1], 2), unit) for place, unit in enumerate(units))]
