"""The order of the steady state as a modulo schedule: every micro-batch the same, one period after the one before.

A block starts at k T + r for the first micro-batch, and T later for each one after it (Rau, MICRO 1994). Blocks of one
device must not overlap modulo T; a block may occupy several devices. A stage keeps at most `cap` micro-batches if its
last backward pass ends at most cap T after its forward pass starts. T is minimised first, then the time from the first
block's start to the last one's end, which is what warm-up and cool-down cost.

For one T this is a problem in differences with a binary choice for every pair of blocks on a common device (CP-SAT).
Any schedule of period T is one of period T + 1 with the same k and r, so that T is found by bisection, and a T that
has no schedule proves that no smaller one has. No T is below the busiest device's load.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, NamedTuple

from engines.superscaler.plan import Block

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ortools.sat.python import cp_model

    from engines.superscaler.order.pipeline import Pipeline
    from engines.superscaler.plan import Pass

    Kind = tuple[int, Pass]

RESOLUTION = 240
"""Units that the busiest device's load for one micro-batch is rounded to, where durations are not small integers."""
SEED = 5


class Grid(NamedTuple):
    """Durations and times under way in whole units."""

    durations: Mapping[Kind, int]
    transfers: Mapping[tuple[int, int], int]
    unit: float
    """Of the durations that came in."""
    exact: bool
    """Whether all of them are whole numbers of units."""

    def load(self, pipeline: Pipeline) -> int:
        """Of the busiest device, for one micro-batch."""
        loads = dict.fromkeys(pipeline.groups, 0)
        for (stage, _), duration in self.durations.items():
            for device in pipeline.devices[stage]:
                loads[device] += duration
        return max(loads.values())


@dataclass(frozen=True)
class Periodic:
    """A modulo schedule; times in units of its grid."""

    grid: Grid
    period: int
    bound: int
    """No schedule has a smaller period: the busiest device's load, or what the solver proved."""
    starts: Mapping[Kind, int]
    """(stage, pass) -> when it starts for the first micro-batch."""
    latency: int
    """From the first start of a micro-batch to its last end."""
    shortest: bool
    """Whether no schedule of this period has a smaller latency."""

    @property
    def proven(self) -> bool:
        """Whether no schedule has a smaller period."""
        return self.period == self.bound


def on_grid(
    pipeline: Pipeline,
    durations: Mapping[Kind, float],
    transfers: Mapping[tuple[int, int], float] | None = None,
) -> Grid:
    """Durations in whole units: exactly if they are multiples of some not too small one, else to the nearest.

    What is rounded changes which order is found, and not whether it is valid.
    """
    loads = dict.fromkeys(pipeline.groups, 0.0)
    for (stage, _), duration in durations.items():
        for device in pipeline.devices[stage]:
            loads[device] += duration
    each = [*durations.values(), *(transfers or {}).values()]
    whole = all(float(value).is_integer() for value in each)
    unit = float(reduce(math.gcd, (int(value) for value in each))) if whole else 0.0
    exact = unit > 0 and max(loads.values()) / unit <= RESOLUTION and min(durations.values()) > 0
    if not exact:
        unit = max(loads.values()) / RESOLUTION
    return Grid(
        {kind: max(1, round(durations[kind] / unit)) for kind in sorted(durations)},
        {pair: round(time / unit) for pair, time in sorted((transfers or {}).items())},
        unit,
        exact,
    )


def periodic(pipeline: Pipeline, grid: Grid, caps: Sequence[int | None], effort: float) -> Periodic | None:
    """The shortest period, then the shortest latency.

    Args:
        pipeline: stages and dependence.
        grid: durations in whole units.
        caps: for every stage with a backward pass, the most micro-batches it may keep; None for any number.
        effort: what may be spent, in the solver's deterministic seconds (of the order of a second of one core):
            equal inputs give equal results on every machine.

    Returns:
        None if no schedule was found with that effort.
    """
    problem = _Problem(pipeline, grid, caps, effort)
    low = bound = grid.load(pipeline)
    high = sum(grid.durations.values()) + sum(problem.lag(edge) for edge in problem.edges)  # all in turn: always valid
    best: tuple[int, dict[Kind, int]] | None = None
    step = 1
    while low <= high:
        period = min(low + step - 1, high) if best is None else (low + high) // 2
        found, refuted = problem.starts(period)
        if found is not None:
            best, high = (period, found), period - 1
            continue
        low = period + 1
        step *= 2
        if refuted:
            bound = max(bound, low)
    if best is None:
        return None
    period, starts = best
    starts, shortest = problem.shortened(period, starts)
    return Periodic(grid, period, bound, starts, _latency(grid, starts), shortest)


def unrolled(pipeline: Pipeline, schedule: Periodic) -> tuple[Block, ...]:
    """The order of all blocks of a step: warm-up, steady state and cool-down fall out of the micro-batches' starts."""
    timed = sorted(
        (start + micro_batch * schedule.period, stage, micro_batch, what)
        for (stage, what), start in schedule.starts.items()
        for micro_batch in range(pipeline.micro_batches)
    )
    return tuple(Block(stage, micro_batch, what) for _, stage, micro_batch, what in timed)


class _Problem:
    """A pipeline's modulo scheduling problem, for any period; it keeps account of the effort."""

    def __init__(self, pipeline: Pipeline, grid: Grid, caps: Sequence[int | None], effort: float) -> None:
        self._grid = grid
        self._effort = effort
        self._kinds = sorted(grid.durations, key=lambda kind: (kind[1] != "F", kind))  # the first stage's F leads
        self._sources = [stage for stage, before in enumerate(pipeline.before) if not before]
        self.edges = [(need, kind) for kind in self._kinds for need in pipeline.needed(*kind)]
        self._kept: list[tuple[Kind, Kind, int]] = []
        for stage, last in sorted(pipeline.last.items()):
            cap = caps[stage]
            if cap is not None:
                self._kept.append(((stage, "F"), (stage, last), cap))
        self._pairs = [
            (first, second)
            for first, second in itertools.combinations(self._kinds, 2)
            if not set(pipeline.devices[first[0]]).isdisjoint(pipeline.devices[second[0]])
        ]

    def lag(self, edge: tuple[Kind, Kind]) -> int:
        """How long what one pass makes is under way to another."""
        return self._grid.transfers.get((edge[0][0], edge[1][0]), 0)

    def starts(self, period: int) -> tuple[dict[Kind, int] | None, bool]:
        """(starts of a schedule of this period if one was found, whether there is none)."""
        from ortools.sat.python import cp_model

        model, starts = self._model(period)
        solver, status = self._solve(model)
        if status in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            return {kind: solver.value(start) for kind, start in starts.items()}, False
        return None, status == cp_model.INFEASIBLE

    def shortened(self, period: int, known: Mapping[Kind, int]) -> tuple[dict[Kind, int], bool]:
        """(starts of least latency for a period that has a schedule, whether that is proven)."""
        from ortools.sat.python import cp_model

        model, starts = self._model(period)
        longest = _latency(self._grid, known)
        begin, latency = model.new_int_var(0, period, "begin"), model.new_int_var(0, longest, "latency")
        for kind, start in starts.items():
            model.add(begin <= start)
            model.add(start + self._grid.durations[kind] <= begin + latency)
        model.minimize(latency)
        solver, status = self._solve(model)
        if status in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            return {kind: solver.value(start) for kind, start in starts.items()}, status == cp_model.OPTIMAL
        return dict(known), False

    def _model(self, period: int) -> tuple[cp_model.CpModel, dict[Kind, cp_model.LinearExpr]]:
        from ortools.sat.python import cp_model

        durations = self._grid.durations
        model = cp_model.CpModel()
        # Of the rounds k, none need be larger: with given r, each edge asks for at most so much more.
        rounds = sum(1 + -(-(durations[edge[0]] + self.lag(edge)) // period) for edge in self.edges) + 1
        starts: dict[Kind, cp_model.LinearExpr] = {}
        places: dict[Kind, cp_model.IntVar] = {}
        for number, kind in enumerate(self._kinds):
            # Moving a whole schedule in time changes nothing: the first block is put at zero, in its round at least.
            places[kind] = model.new_int_var(0, period - 1 if number else 0, f"r {kind}")
            fixed = not number and len(self._sources) == 1
            starts[kind] = period * model.new_int_var(0, 0 if fixed else rounds, f"k {kind}") + places[kind]
        for edge in self.edges:
            before, after = edge
            model.add(starts[after] >= starts[before] + durations[before] + self.lag(edge))
        for forward, last, cap in self._kept:
            model.add(starts[last] + durations[last] - starts[forward] <= cap * period)
        for one, other in self._pairs:
            ahead = model.new_bool_var(f"{one} before {other}")
            for first, second, chosen in ((one, other, ahead), (other, one, ~ahead)):
                apart = places[second] - places[first]
                within = model.add_linear_constraint(apart, durations[first], period - durations[second])
                within.only_enforce_if(chosen)
        return model, starts

    def _solve(self, model: cp_model.CpModel) -> tuple[cp_model.CpSolver, cp_model.cp_model_pb2.CpSolverStatus]:
        from ortools.sat.python import cp_model

        solver = cp_model.CpSolver()
        solver.parameters.num_workers = 1
        solver.parameters.random_seed = SEED
        solver.parameters.max_deterministic_time = self._effort
        return solver, solver.solve(model)


def _latency(grid: Grid, starts: Mapping[Kind, int]) -> int:
    first = min(starts.values())
    return max(start + grid.durations[kind] for kind, start in starts.items()) - first
