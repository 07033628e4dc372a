"""The cut into stages: a dynamic program over units, devices and stages still to come.

The time of a step is Alpa's form with what it leaves out: ``sum(t) + (M - 1) max(t)`` over stages, where t has forward,
backward, a share of the gradients' sum and the optimizer's update, plus what crosses each cut. For every bound on the
slowest stage the sum is minimised; the best bound wins (Zheng et al.: Alpa, OSDI 2022, section 5). A stage that is
followed by others keeps the activations of as many micro-batches as there are stages from it to the end (1F1B).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from engines.superscaler.search.intra import Solution

    Floats = NDArray[np.float64]

BOUNDS = 24
"""Bounds on the slowest stage that are tried."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """A way to do any run of units on a number of devices: a solution for the whole graph, read unit by unit."""

    size: int
    solution: Solution

    @cached_property
    def sums(self) -> Floats:
        """Shape [units + 1, 5]: forward, backward, once, persistent, kept, of all units before."""
        rows = [tuple(self.solution.units[unit])[:5] for unit in sorted(self.solution.units)]
        return np.concatenate([np.zeros((1, 5)), np.cumsum(np.array(rows, dtype=float), axis=0)])

    @cached_property
    def peaks(self) -> Floats:
        """Shape [units, units + 1]: largest peak of units i to j - 1."""
        peaks = [self.solution.units[unit].peak for unit in sorted(self.solution.units)]
        found = np.zeros((len(peaks), len(peaks) + 1))
        for first in range(len(peaks)):
            found[first, first + 1 :] = np.maximum.accumulate(peaks[first:])
        return found

    def times(self, micro_batches: int) -> Floats:
        """Shape [units, units + 1]: seconds per micro-batch of units i to j - 1; infinite where there are none."""
        each = self.sums[:, 0] + self.sums[:, 1] + self.sums[:, 2] / micro_batches
        return _between(each, np.inf)

    def memory(self, in_flight: int) -> Floats:
        """Shape [units, units + 1]: bytes on each device."""
        return _between(self.sums[:, 3] + in_flight * self.sums[:, 4], 0.0) + self.peaks


@dataclass(frozen=True)
class Piece:
    """One stage of a cut."""

    first: int
    stop: int
    candidate: Candidate


@dataclass(frozen=True)
class Cut:
    """Stages in order, and the time that the form above gives them."""

    pieces: tuple[Piece, ...]
    seconds: float


def _between(sums: Floats, empty: float) -> Floats:
    found = sums[None, :] - sums[:-1, None]
    return np.where(np.arange(len(sums))[None, :] > np.arange(len(sums) - 1)[:, None], found, empty)


def cut(
    candidates: Sequence[Candidate],
    devices: int,
    stages: int,
    micro_batches: int,
    capacity: float,
    crossing: Callable[[int, int], float],
    units: tuple[int, int],
) -> Cut | None:
    """The best cut into so many stages that uses all devices; None if nothing fits.

    Args:
        candidates: for stages of one or more sizes.
        devices: of all stages together.
        stages: how many.
        micro_batches: of a step.
        capacity: bytes of a device.
        crossing: (unit, size) -> seconds for what comes in from the stage before, at the cut before this unit.
        units: first and one past the last unit.
    """
    start, stop = units
    sizes = sorted({one.size for one in candidates})
    tables: dict[tuple[int, int], tuple[Floats, NDArray[np.int64]]] = {}
    for size in sizes:
        own = [one for one in candidates if one.size == size]
        enter = np.array([0.0 if unit == start else crossing(unit, size) for unit in range(start, stop)])
        for left in range(1, stages + 1):
            stacked = np.stack(
                [
                    np.where(one.memory(min(micro_batches, left)) <= capacity, one.times(micro_batches), np.inf)
                    for one in own
                ]
            )[:, start:stop, start : stop + 1]
            best = stacked.argmin(axis=0)
            tables[size, left] = (np.take_along_axis(stacked, best[None], 0)[0], best)
        tables[size, 0] = (enter[:, None] + np.zeros((1, stop - start + 1)), np.zeros((1, 1), dtype=np.int64))
    finite = [table[np.isfinite(table)] for (_, left), (table, _) in tables.items() if left]
    values = np.unique(np.concatenate(finite)) if finite else np.zeros(0)
    if not len(values):
        return None
    bounds = np.unique(values[np.linspace(0, len(values) - 1, BOUNDS).astype(int)])
    found: Cut | None = None
    lowest = _first_feasible(values, lambda bound: _chain(tables, sizes, devices, stages, stop - start, bound))
    if lowest is None:
        return None
    for bound in (lowest, *[value for value in bounds if value > lowest]):
        if found is not None and (micro_batches - 1) * lowest >= found.seconds:
            break
        steps = _chain(tables, sizes, devices, stages, stop - start, float(bound))
        if steps is None:
            continue
        pieces, spent, slowest = [], 0.0, 0.0
        for left, (size, first, end) in zip(range(stages, 0, -1), steps, strict=True):
            table, which = tables[size, left]
            own = [one for one in candidates if one.size == size]
            pieces.append(Piece(start + first, start + end, own[int(which[first, end])]))
            spent += float(table[first, end]) + float(tables[size, 0][0][first, 0])
            slowest = max(slowest, float(table[first, end]))
        seconds = spent + (micro_batches - 1) * slowest
        if found is None or seconds < found.seconds:
            found = Cut(tuple(pieces), seconds)
    return found


def _first_feasible(values: Floats, chain: Callable[[float], object]) -> float | None:
    low, high = 0, len(values) - 1
    if chain(float(values[high])) is None:
        return None
    while low < high:
        middle = (low + high) // 2
        if chain(float(values[middle])) is None:
            low = middle + 1
        else:
            high = middle
    return float(values[low])


def _chain(
    tables: dict[tuple[int, int], tuple[Floats, NDArray[np.int64]]],
    sizes: Sequence[int],
    devices: int,
    stages: int,
    count: int,
    bound: float,
) -> list[tuple[int, int, int]] | None:
    """(size, first, stop) of every stage with the least sum, each at most `bound`."""
    # best[d][i]: of units i to the end on d devices with `left` stages.
    best: dict[int, Floats] = {0: np.append(np.full(count, np.inf), 0.0)}
    trail: list[dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]]] = []
    for left in range(1, stages + 1):
        after: dict[int, Floats] = {}
        picks: dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}
        for size in sizes:
            table = np.where(tables[size, left][0] <= bound, tables[size, left][0], np.inf)
            table = table + tables[size, 0][0][:, :1]
            for used, rest in best.items():
                total = used + size
                if total > devices or total + (stages - left) * sizes[0] > devices:
                    continue
                sums = table + rest[None, :]
                ends = sums.argmin(axis=1)
                lowest = np.append(sums[np.arange(count), ends], np.inf)
                if total not in after:
                    after[total] = lowest
                    picks[total] = (np.append(ends, 0), np.full(count + 1, size))
                    continue
                better = lowest < after[total]
                after[total] = np.where(better, lowest, after[total])
                old_ends, old_sizes = picks[total]
                picks[total] = (np.where(better, np.append(ends, 0), old_ends), np.where(better, size, old_sizes))
        best = after
        trail.append(picks)
    if devices not in best or not np.isfinite(best[devices][0]):
        return None
    steps, place, total = [], 0, devices
    for picks in reversed(trail):
        ends, chosen = picks[total]
        end, size = int(ends[place]), int(chosen[place])
        steps.append((size, place, end))
        place, total = end, total - size
    return steps
