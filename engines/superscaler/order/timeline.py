"""When every block of an order starts and ends, if each device does its blocks in that order as soon as it can.

A quick evaluator for charts, tests and the choice between orders. It knows durations and a time for each crossing from
stage to stage, and neither links that are shared nor memory: the emulator does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from engines.superscaler.order.pipeline import named
from harness.api import PlanError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from engines.superscaler.order.pipeline import Pipeline
    from engines.superscaler.plan import Block, Pass


class Placed(NamedTuple):
    """A block in time: seconds, or whatever unit durations came in."""

    block: Block
    start: float
    end: float


def timeline(
    pipeline: Pipeline,
    order: Sequence[Block],
    durations: Mapping[tuple[int, Pass], float],
    transfers: Mapping[tuple[int, int], float] | None = None,
) -> tuple[Placed, ...]:
    """Start and end of every block, in the order given.

    Args:
        pipeline: stages and dependence.
        order: a valid order of all blocks (see `check`).
        durations: (stage, pass) -> how long it takes; a block occupies all its devices that long.
        transfers: (stage, stage) -> how long a tensor is under way from one to the other, forward or backward
            (source stage first); absent pairs take no time.

    Raises:
        PlanError: a block stands before one that it needs.
    """
    free: dict[int, float] = dict.fromkeys(pipeline.groups, 0.0)
    ends: dict[Block, float] = {}
    placed = []
    for block in order:
        devices = pipeline.devices[block.stage]
        start = max(free[device] for device in devices)
        for need in pipeline.needs(block):
            if need not in ends:
                raise PlanError(f"{named(block)} stands in the order before {named(need)}, which it needs")
            under_way = transfers.get((need.stage, block.stage), 0.0) if transfers else 0.0
            start = max(start, ends[need] + under_way)
        end = start + durations[block.stage, block.what]
        ends[block] = end
        free.update(dict.fromkeys(devices, end))
        placed.append(Placed(block, start, end))
    return tuple(placed)


def makespan(placed: Sequence[Placed]) -> float:
    """End of the last block."""
    return max(each.end for each in placed)


def bubble(pipeline: Pipeline, placed: Sequence[Placed]) -> float:
    """Part of all devices' time, from the first start to the last end, in which nothing runs on them."""
    busy = sum((each.end - each.start) * len(pipeline.devices[each.block.stage]) for each in placed)
    return 1 - busy / (makespan(placed) * len(pipeline.groups))


def in_flight(pipeline: Pipeline, order: Sequence[Block]) -> dict[int, int]:
    """For every stage with a backward pass, the most micro-batches it keeps activations of at once."""
    kept = dict.fromkeys(pipeline.last, 0)
    most = dict(kept)
    for block in order:
        if block.stage not in kept:
            continue
        if block.what == "F":
            kept[block.stage] += 1
            most[block.stage] = max(most[block.stage], kept[block.stage])
        elif block.what == pipeline.last[block.stage]:
            kept[block.stage] -= 1
    return most


def held(pipeline: Pipeline, order: Sequence[Block]) -> dict[int, int]:
    """For every device, the most (stage, micro-batch) pairs it keeps activations of at once."""
    kept = dict.fromkeys(pipeline.groups, 0)
    most = dict(kept)
    for block in order:
        if block.stage not in pipeline.last:
            continue
        change = 1 if block.what == "F" else -1 if block.what == pipeline.last[block.stage] else 0
        for device in pipeline.devices[block.stage]:
            kept[device] += change
            most[device] = max(most[device], kept[device])
    return most
