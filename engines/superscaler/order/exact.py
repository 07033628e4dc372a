"""The order of a whole step with least makespan, for few micro-batches (CP-SAT).

Micro-batches are alike, so that every pass of a stage can take them in their order: whichever schedule there is, let
the n-th of its passes be the n-th micro-batch's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engines.superscaler.order.periodic import SEED
from engines.superscaler.plan import Block

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from engines.superscaler.order.periodic import Grid, Kind
    from engines.superscaler.order.pipeline import Pipeline


def lower_bound(
    pipeline: Pipeline, durations: Mapping[Kind, float], transfers: Mapping[tuple[int, int], float]
) -> float:
    """No order is shorter: the busiest device's work, with what must go before its first and after its last block."""
    head: dict[Kind, float] = {}
    for kind in _in_order(pipeline):
        needs = pipeline.needed(*kind)
        ready = [head[need] + durations[need] + transfers.get((need[0], kind[0]), 0.0) for need in needs]
        head[kind] = max(ready, default=0.0)
    tail: dict[Kind, float] = dict.fromkeys(head, 0.0)
    for kind in reversed(_in_order(pipeline)):
        for need in pipeline.needed(*kind):
            under_way = transfers.get((need[0], kind[0]), 0.0)
            tail[need] = max(tail[need], tail[kind] + durations[kind] + under_way)
    bound = max(head[kind] + durations[kind] + tail[kind] for kind in head)
    for device in pipeline.groups:
        own = [kind for kind in head if device in pipeline.devices[kind[0]]]
        load = pipeline.micro_batches * sum(durations[kind] for kind in own)
        bound = max(bound, min(head[kind] for kind in own) + load + min(tail[kind] for kind in own))
    return bound


def exact(
    pipeline: Pipeline,
    grid: Grid,
    caps: Sequence[int | None],
    effort: float,
    known: Sequence[Block],
) -> tuple[tuple[Block, ...], int]:
    """(an order at least as short as `known`, what no order is shorter than), in units of the grid.

    Args:
        pipeline: stages, dependence and micro-batches.
        grid: durations in whole units.
        caps: for every stage, the most micro-batches it may keep; None for any number.
        effort: what may be spent, in the solver's deterministic seconds.
        known: a valid order within the caps.
    """
    from ortools.sat.python import cp_model

    from engines.superscaler.order.timeline import makespan, timeline

    placed = timeline(pipeline, known, grid.durations, grid.transfers)
    longest = round(makespan(placed))
    bound = round(lower_bound(pipeline, grid.durations, grid.transfers))
    if longest == bound:
        return tuple(known), bound
    model = cp_model.CpModel()
    starts = {each.block: model.new_int_var(0, longest, str(each.block)) for each in sorted(placed)}
    for block, start in starts.items():
        for need in pipeline.needs(block):
            under_way = grid.transfers.get((need.stage, block.stage), 0)
            model.add(start >= starts[need] + grid.durations[need.stage, need.what] + under_way)
        if block.micro_batch:
            before = block._replace(micro_batch=block.micro_batch - 1)
            model.add(start >= starts[before] + grid.durations[block.stage, block.what])
        cap = caps[block.stage] if block.what == "F" and block.stage in pipeline.last else None
        if cap is not None and block.micro_batch >= cap:
            last = Block(block.stage, block.micro_batch - cap, pipeline.last[block.stage])
            model.add(start >= starts[last] + grid.durations[last.stage, last.what])
    for device in pipeline.groups:
        model.add_no_overlap(
            model.new_fixed_size_interval_var(start, grid.durations[block.stage, block.what], str(block))
            for block, start in starts.items()
            if device in pipeline.devices[block.stage]
        )
    end = model.new_int_var(bound, longest, "end")
    for block, start in starts.items():
        model.add(end >= start + grid.durations[block.stage, block.what])
    for each in placed:
        model.add_hint(starts[each.block], round(each.start))
    model.minimize(end)
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = SEED
    solver.parameters.max_deterministic_time = effort
    status = solver.solve(model)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return tuple(known), bound
    order = tuple(sorted(starts, key=lambda block: (solver.value(starts[block]), block)))
    return order, round(solver.best_objective_bound)


def _in_order(pipeline: Pipeline) -> list[Kind]:
    """Every pass of every stage after those it needs."""
    forward: list[Kind] = [(stage, "F") for stage in range(len(pipeline.devices))]
    backward: list[Kind] = []
    for stage in reversed(range(len(pipeline.devices))):
        backward += [(stage, what) for what in pipeline.passes[stage][1:]]  # type: ignore[misc]
    return forward + backward
