"""Seconds from every layout of a tensor to every other one on a mesh: shortest paths over single steps.

Nodes are codes (see `options`), edges are what one collective does along some axes: partial sums added up everywhere
(all-reduce) or divided (reduce-scatter), a split dim gathered or exchanged for another (all-to-all), a copy cut down
(free). It is the layout graph of `redistribution`, all pairs at once: an integer program needs every entry.
"""

from __future__ import annotations

import itertools
import math
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from engines.superscaler.graph import BYTES
from engines.superscaler.search.options import ADDENDS, WHOLE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from engines.superscaler.cost import Costs
    from engines.superscaler.layout import Mesh
    from engines.superscaler.search.options import Code


class Redistribution:
    """Prices of one tensor shape on one mesh.

    Args:
        shape: of the whole tensor.
        dtype: of its elements.
        mesh: where it lies.
        costs: of collectives.
    """

    def __init__(self, shape: tuple[int, ...], dtype: str, mesh: Mesh, costs: Costs) -> None:
        self._shape, self._mesh, self._costs = shape, mesh, costs
        self._bytes = math.prod(shape) * BYTES[dtype]
        axes = len(mesh.shape)
        states = (WHOLE, ADDENDS, *range(len(shape)))
        self.codes: tuple[Code, ...] = tuple(c for c in itertools.product(states, repeat=axes) if self._divides(c))
        """Every layout of it."""
        self.index: Mapping[Code, int] = {code: number for number, code in enumerate(self.codes)}
        """Of each code."""

    def _divides(self, code: Code) -> bool:
        parts: dict[int, int] = {}
        for axis, state in enumerate(code):
            if state >= 0:
                parts[state] = parts.get(state, 1) * self._mesh.shape[axis]
        return all(self._shape[dim] % count == 0 for dim, count in parts.items())

    @cached_property
    def seconds(self) -> NDArray[np.float64]:
        """Shape [codes, codes]: from the row's layout to the column's."""
        size = len(self.codes)
        found = np.full((size, size), np.inf)
        np.fill_diagonal(found, 0.0)
        subsets = [
            axes
            for count in range(1, len(self._mesh.shape) + 1)
            for axes in itertools.combinations(range(len(self._mesh.shape)), count)
        ]
        for row, code in enumerate(self.codes):
            for axes in subsets:
                state = code[axes[0]]
                if any(code[axis] != state for axis in axes[1:]):
                    continue
                for after in (WHOLE, ADDENDS, *range(len(self._shape))):
                    target = tuple(after if axis in axes else old for axis, old in enumerate(code))
                    column = self.index.get(target)
                    if after != state and column is not None:
                        found[row, column] = min(found[row, column], self._step(code, target, axes))
        for middle in range(size):
            np.minimum(found, found[:, middle, None] + found[None, middle, :], out=found)
        return found

    def _step(self, before: Code, after: Code, axes: tuple[int, ...]) -> float:
        old, new = before[axes[0]], after[axes[0]]
        # Axes split a dim in rising order, so only the minor ones of a dim can be gathered or cut in place.
        if old >= 0 and any(before[axis] == old for axis in range(axes[0], len(before)) if axis not in axes):
            return math.inf
        if new >= 0 and any(after[axis] == new for axis in range(axes[0], len(after)) if axis not in axes):
            return math.inf
        held = self._bytes // self._parts(before)
        match (old, new):
            case (state, target) if state == WHOLE and target == ADDENDS:
                return 0.0
            case (state, _) if state == WHOLE:
                return 0.0
            case (state, target) if target == ADDENDS:
                return math.inf
            case (state, target) if state == ADDENDS and target == WHOLE:
                return self._costs.collective("all-reduce", self._mesh, axes, held)
            case (state, _) if state == ADDENDS:
                return self._costs.collective("reduce-scatter", self._mesh, axes, held)
            case (_, target) if target == WHOLE:
                return self._costs.collective("all-gather", self._mesh, axes, self._bytes // self._parts(after))
        return self._costs.collective("all-to-all", self._mesh, axes, held)

    def _parts(self, code: Code) -> int:
        return math.prod(size for state, size in zip(code, self._mesh.shape, strict=True) if state >= 0)
