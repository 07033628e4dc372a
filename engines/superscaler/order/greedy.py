"""List scheduling: always the block that can start first, within a bound on what is kept.

It knows durations and dependence and looks no further ahead than the next block. For chains whose devices have one
stage each that is already the best there is (zero-bubble schedules come out of it); for the others it is what a search
starts from.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

from engines.superscaler.order.pipeline import named
from harness.api import PlanError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from engines.superscaler.order.pipeline import Pipeline
    from engines.superscaler.plan import Block, Pass

RANK: Mapping[Pass, int] = {"B": 0, "F": 1, "W": 2}
"""Of blocks that can start at the same time: backward first, it gives memory back; the weights' half can wait."""


def greedy(
    pipeline: Pipeline,
    durations: Mapping[tuple[int, Pass], float],
    caps: Sequence[int | None] | None = None,
    transfers: Mapping[tuple[int, int], float] | None = None,
) -> tuple[Block, ...]:
    """An order by list scheduling; of equals, the earlier micro-batch and then the later stage goes first.

    Args:
        pipeline: stages and dependence.
        durations: (stage, pass) -> how long it takes.
        caps: for every stage, how many micro-batches may be between their forward pass and the end of their last
            backward pass at once; None for any number.
        transfers: (stage, stage) -> how long a tensor is under way between them; absent pairs take no time.

    Raises:
        PlanError: a cap below one.
    """
    limits = list(caps) if caps is not None else [None] * len(pipeline.devices)
    for stage, limit in enumerate(limits):
        if limit is not None and limit < 1:
            raise PlanError(f"stage {stage} cannot run with room for {limit} micro-batches; it needs at least one")
    free = dict.fromkeys(pipeline.groups, 0.0)
    ends: dict[Block, float] = {}
    kept = [0] * len(pipeline.devices)
    missing = {block: len(pipeline.needs(block)) for block in pipeline.blocks()}
    dependents: dict[Block, list[Block]] = {}
    for block in missing:
        for need in pipeline.needs(block):
            dependents.setdefault(need, []).append(block)

    under_way = transfers or {}

    def start(block: Block) -> float:
        devices = max(free[device] for device in pipeline.devices[block.stage])
        arrived = (ends[need] + under_way.get((need.stage, block.stage), 0.0) for need in pipeline.needs(block))
        return max([devices, *arrived])

    def entry(block: Block) -> tuple[float, int, int, int, Block]:
        return start(block), RANK[block.what], block.micro_batch, -block.stage, block

    ready = [entry(block) for block, count in missing.items() if not count]
    heapq.heapify(ready)
    full: dict[int, list[Block]] = {}
    order: list[Block] = []
    while ready:
        before, *_, block = heapq.heappop(ready)
        limit = limits[block.stage] if block.stage in pipeline.last else None
        if block.what == "F" and limit is not None and kept[block.stage] >= limit:
            full.setdefault(block.stage, []).append(block)
            continue
        if start(block) > before:
            heapq.heappush(ready, entry(block))
            continue
        ends[block] = before + durations[block.stage, block.what]
        free.update(dict.fromkeys(pipeline.devices[block.stage], ends[block]))
        order.append(block)
        if block.what == "F":
            kept[block.stage] += 1
        elif block.what == pipeline.last[block.stage]:
            kept[block.stage] -= 1
            for waiting in full.pop(block.stage, ()):
                heapq.heappush(ready, entry(waiting))
        for dependent in dependents.get(block, ()):
            missing[dependent] -= 1
            if not missing[dependent]:
                heapq.heappush(ready, entry(dependent))
    if full:
        waiting = min(block for blocks in full.values() for block in blocks)
        raise PlanError(f"{named(waiting)} waits for room that only a later block gives back; raise the caps {limits}")
    return tuple(order)
