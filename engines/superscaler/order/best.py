"""The best order that can be found for a pipeline: a named one, list scheduling, a modulo schedule, or an exact one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from engines.superscaler.order.check import check
from engines.superscaler.order.exact import exact, lower_bound
from engines.superscaler.order.greedy import greedy
from engines.superscaler.order.periodic import on_grid, periodic, unrolled
from engines.superscaler.order.timeline import in_flight, makespan, timeline

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from engines.superscaler.order.periodic import Kind, Periodic
    from engines.superscaler.order.pipeline import Pipeline
    from engines.superscaler.plan import Block

FEW = 160
"""Blocks of a step up to which the exact solver is tried."""


@dataclass(frozen=True)
class Best:
    """An order and what is known of it."""

    order: tuple[Block, ...]
    makespan: float
    """With the durations given, by `timeline`."""
    bound: float
    """No order is shorter."""
    origin: str
    """What made it: the name of a candidate, `list scheduling`, `modulo schedule` or `exact`."""
    schedule: Periodic | None
    """The modulo schedule found, with its proof, whether or not its order is the best."""

    @property
    def proven(self) -> bool:
        """Whether no order is shorter (to one part in a million)."""
        return self.makespan <= self.bound * (1 + 1e-6)


def best(
    pipeline: Pipeline,
    durations: Mapping[Kind, float],
    *,
    transfers: Mapping[tuple[int, int], float] | None = None,
    caps: Sequence[int | None] | None = None,
    candidates: Mapping[str, Sequence[Block]] | None = None,
    effort: float = 4.0,
) -> Best:
    """The shortest of all orders tried, never longer than the shortest candidate that keeps within the caps.

    Args:
        pipeline: stages, dependence and micro-batches.
        durations: (stage, pass) -> how long it takes.
        transfers: (stage, stage) -> how long a tensor is under way between them; absent pairs take no time.
        caps: for every stage with a backward pass, the most micro-batches it may keep activations of; None for any
            number. With a cap of one everywhere there is always an order.
        candidates: named schedules to start from.
        effort: what each solver call may spend, in deterministic seconds (of the order of a second of one core).

    Raises:
        PlanError: a candidate is not an order of this pipeline, or a cap is below one.
    """
    limits = tuple(caps) if caps is not None else (None,) * len(pipeline.devices)
    under_way = dict(transfers or {})
    bound = lower_bound(pipeline, durations, under_way)
    tried: list[tuple[float, int, str, tuple[Block, ...]]] = []

    def consider(name: str, order: Sequence[Block]) -> None:
        check(pipeline, order)
        kept = in_flight(pipeline, order)
        within = (limits[stage] is None or most <= limits[stage] for stage, most in kept.items())  # type: ignore[operator]
        if all(within):
            tried.append((makespan(timeline(pipeline, order, durations, under_way)), len(tried), name, tuple(order)))

    for name, order in (candidates or {}).items():
        consider(name, order)
    consider("list scheduling", greedy(pipeline, durations, limits, under_way))
    schedule = None
    if not _reached(tried, bound):
        grid = on_grid(pipeline, durations, under_way)
        schedule = periodic(pipeline, grid, limits, effort)
        if schedule is not None:
            consider("modulo schedule", unrolled(pipeline, schedule))
        if not _reached(tried, bound) and len(pipeline.blocks()) <= FEW:
            order, least = exact(pipeline, grid, limits, effort, min(tried)[3])
            consider("exact", order)
            if grid.exact:
                bound = max(bound, least * grid.unit)
    length, _, name, order = min(tried)
    return Best(order, length, bound, name, schedule)


def _reached(tried: Sequence[tuple[float, int, str, tuple[Block, ...]]], bound: float) -> bool:
    return min(tried)[0] <= bound * (1 + 1e-6)
