"""Plans with names, each made of op-trans, op-assign and op-order and nothing else: phase 3 knows none of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engines.superscaler.named import co_shard, hybrid, interlaced, recycling
from harness.api import PlanError, nearest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engines.superscaler.graph import Graph
    from engines.superscaler.plan import Plan

OTHERS = {"co-shard": co_shard.build, "interlaced": interlaced.build, "3f1b": recycling.build}
NAMES = (*hybrid.RECIPES, *OTHERS)


def build(
    name: str,
    graph: Graph,
    devices: int | Sequence[int],
    *,
    micro_batches: int = 1,
    data: int = 0,
    pipeline: int = 0,
    tensor: int = 0,
    chunks: int = 1,
    recompute: bool = False,
    **options: int,
) -> Plan:
    """Build a named plan.

    Args:
        name: One of `NAMES`.
        graph: The model.
        devices: Ranks, or how many.
        micro_batches: Of a step.
        data: Replicas; 0: as the plan sees fit.
        pipeline: Groups of devices in a row; 0: as the plan sees fit.
        tensor: Devices that split operators; 0: as the plan sees fit.
        chunks: Stages on each group of devices (`interleaved`).
        recompute: Whether only what enters a layer is kept.
        options: `parts` and `layers` of co-shard.

    Raises:
        PlanError: no such plan, or one that these devices or this model cannot have; says the nearest that they can.
    """
    ranks = tuple(range(devices)) if isinstance(devices, int) else tuple(devices)
    if not ranks:
        raise PlanError("a plan needs at least one device")
    common = {"micro_batches": micro_batches, "data": data, "pipeline": pipeline, "tensor": tensor}
    if name not in NAMES:
        close = nearest(name, NAMES)
        hint = f"; did you mean {close!r}?" if close else ""
        raise PlanError(f"no plan is named {name!r} (there are {', '.join(NAMES)}){hint}")
    if name == "co-shard":
        return co_shard.build(name, graph, ranks, **common, **options)
    if options:
        raise PlanError(f"plan {name!r} has no option {next(iter(options))!r}")
    if name in hybrid.RECIPES:
        return hybrid.build(name, graph, ranks, **common, chunks=chunks, recompute=recompute)
    return OTHERS[name](name, graph, ranks, **common, recompute=recompute)
