"""One test for every order, wherever it came from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engines.superscaler.order.pipeline import named
from harness.api import PlanError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engines.superscaler.order.pipeline import Pipeline
    from engines.superscaler.plan import Block


def check(pipeline: Pipeline, order: Sequence[Block]) -> None:
    """Whether an order has all blocks, each once, and every block after those that it needs.

    Devices need no look: each does its own blocks in this one order, so that nothing can wait in a circle.

    Raises:
        PlanError: what is missing, too much, or (two blocks named) the wrong way round.
    """
    wanted = set(pipeline.blocks())
    place: dict[Block, int] = {}
    for position, block in enumerate(order):
        if block not in wanted:
            raise PlanError(
                f"{named(block)} is in the order, but the plan has no such block: it has {len(pipeline.devices)} "
                f"stages and {pipeline.micro_batches} micro-batches{_passes(pipeline, block.stage)}"
            )
        if block in place:
            raise PlanError(f"{named(block)} is twice in the order, at {place[block]} and {position}")
        place[block] = position
    missing = next((block for block in pipeline.blocks() if block not in place), None)
    if missing is not None:
        raise PlanError(f"{named(missing)} is not in the order, nor are {len(wanted) - len(place) - 1} other blocks")
    for block in order:
        for need in pipeline.needs(block):
            if place[need] > place[block]:
                raise PlanError(
                    f"{named(block)} stands at {place[block]} in the order, before {named(need)} at {place[need]}, "
                    "which it needs"
                )


def _passes(pipeline: Pipeline, stage: int) -> str:
    if 0 <= stage < len(pipeline.passes):
        return f", and stage {stage} has the passes {', '.join(pipeline.passes[stage])}"
    return ""
