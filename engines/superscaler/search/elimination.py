"""The cheapest choice for every variable, where costs are sums of tables over one, two or a few of them.

This is the intra-operator problem: minimise the sum of the costs of operators and of the redistributions between them.
Graphs of models are long and thin, so variables can be *eliminated* one after another (nonserial dynamic programming;
Bertele and Brioschi, 1972): a variable leaves a table over its neighbours, of the best it can do for each of their
choices. What is left at the end is the exact optimum. Equal layers have equal tables, and each table is worked out
once: solving one layer solves all that are like it.

A variable whose neighbours' table would be too large is left over; the rest is an integer program (`ilp`).
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    Table = NDArray[np.float64]

LARGEST = 16_000_000
"""Entries of a table that elimination may make."""


@dataclass
class Problem:
    """Variables with so many choices each, and tables that add up to the cost.

    Tables that are the same object are the same table; equal layers share them.
    """

    choices: dict[str, int] = field(default_factory=dict)
    tables: list[tuple[tuple[str, ...], Table]] = field(default_factory=list)

    def cost(self, chosen: Mapping[str, int]) -> float:
        """Of choices for all variables."""
        return float(sum(table[tuple(chosen[name] for name in names)] for names, table in self.tables))


@dataclass
class Reduced:
    """What elimination leaves: a problem over fewer variables, and how to go back."""

    core: Problem
    constant: float
    trail: list[tuple[str, tuple[str, ...], NDArray[np.int64]]]
    """(variable, the neighbours it depends on, its best choice for each of theirs), in order of elimination."""

    def completed(self, chosen: Mapping[str, int]) -> dict[str, int]:
        """Choices of all variables from those of the core."""
        found = dict(chosen)
        for name, neighbours, best in reversed(self.trail):
            found[name] = int(best[tuple(found[other] for other in neighbours)])
        return found


@dataclass
class Memory:
    """Tables made before, by the identity of what they were made from; keep one for problems that share tables."""

    sums: dict[tuple[object, ...], Table] = field(default_factory=dict)
    minima: dict[tuple[object, ...], tuple[Table, NDArray[np.int64]]] = field(default_factory=dict)
    kept: list[Table] = field(default_factory=list)
    """So that no identity is given away twice."""


def reduce(problem: Problem, memory: Memory | None = None) -> Reduced:
    """Eliminate every variable whose table over its neighbours stays small."""
    memory = memory or Memory()
    order = {name: place for place, name in enumerate(problem.choices)}
    tables: dict[int, tuple[tuple[str, ...], Table]] = {}
    touching: dict[str, set[int]] = {name: set() for name in problem.choices}
    by_scope: dict[tuple[str, ...], int] = {}
    numbers = iter(range(1 << 60))
    constant = 0.0

    def add(names: tuple[str, ...], table: Table) -> None:
        nonlocal constant
        if not names:
            constant += float(table)
            return
        ranked = tuple(sorted(range(len(names)), key=lambda place: order[names[place]]))
        if ranked != tuple(range(len(names))):
            key = ("turn", id(table), ranked)
            if key not in memory.sums:
                memory.kept.append(table)
                memory.sums[key] = np.ascontiguousarray(table.transpose(ranked))
            names, table = tuple(names[place] for place in ranked), memory.sums[key]
        if names in by_scope:
            number = by_scope[names]
            other = tables[number][1]
            key = ("sum", *sorted((id(table), id(other))))
            if key not in memory.sums:
                memory.kept += [table, other]
                memory.sums[key] = table + other
            tables[number] = (names, memory.sums[key])
            return
        number = next(numbers)
        by_scope[names] = number
        tables[number] = (names, table)
        for name in names:
            touching[name].add(number)

    def neighbours(name: str) -> tuple[str, ...]:
        found = {other for number in touching[name] for other in tables[number][0]} - {name}
        return tuple(sorted(found, key=order.__getitem__))

    for names, table in problem.tables:
        add(names, table)
    trail: list[tuple[str, tuple[str, ...], NDArray[np.int64]]] = []
    left = dict(problem.choices)
    sizes = {name: _size(name, neighbours(name), left) for name in left}
    # Of variables of equal size those come first that no elimination has touched, then those touched in the fewest
    # rounds. Along a chain of equal layers every round so does the same in each of them, on the same tables, which
    # `memory` has; from one end to the other, what came before would make each layer's tables its own.
    rounds = dict.fromkeys(left, 0)
    queue = [(sizes[name], 0, order[name], name) for name in left]
    heapq.heapify(queue)
    while queue:
        size, turn, _, name = heapq.heappop(queue)
        if name not in left or (size, turn) != (sizes[name], rounds[name]):
            continue  # it has changed since, and stands in the queue again
        if size > LARGEST:
            break
        around = neighbours(name)
        used = sorted(touching[name], key=lambda number: [order[n] for n in tables[number][0]])
        scopes = [tables[number] for number in used]
        places = {other: place for place, other in enumerate((*around, name))}
        key = tuple((id(table), *(places[n] for n in names)) for names, table in scopes)
        if key not in memory.minima:
            memory.kept += [table for _, table in scopes]
            shape = tuple(left[n] for n in (*around, name))
            memory.minima[key] = _minimum(scopes, places, shape)
        lowest, best = memory.minima[key]
        for number in used:
            names = tables.pop(number)[0]
            del by_scope[names]
            for other in names:
                touching[other].discard(number)
        del left[name], sizes[name]
        trail.append((name, around, best))
        add(around, lowest)
        for other in around:
            sizes[other] = _size(other, neighbours(other), left)
            rounds[other] = max(rounds[other], turn + 1)
            heapq.heappush(queue, (sizes[other], rounds[other], order[other], other))
    core = Problem(left, [tables[number] for number in sorted(tables)])
    return Reduced(core, constant, trail)


def _size(name: str, around: Sequence[str], choices: Mapping[str, int]) -> int:
    return math.prod(choices[other] for other in around) * choices[name]


def _minimum(
    scopes: Sequence[tuple[tuple[str, ...], Table]], places: Mapping[str, int], shape: tuple[int, ...]
) -> tuple[Table, NDArray[np.int64]]:
    total = np.zeros(shape)
    for names, table in scopes:
        ranked = sorted(range(len(names)), key=lambda place: places[names[place]])
        turned = table.transpose(ranked)
        wide = [1] * len(shape)
        for place in ranked:
            wide[places[names[place]]] = shape[places[names[place]]]
        total += turned.reshape(wide)
    best = total.argmin(axis=-1)
    return np.take_along_axis(total, best[..., None], -1)[..., 0], best
