"""Plans of replicas x pipeline x tensor parallelism: all that differ in degrees, order and where weights lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from engines.superscaler import order, scheduling, transformation
from engines.superscaler.draft import Draft
from engines.superscaler.named import cuts, splits
from engines.superscaler.named.degrees import degrees
from harness.api import PlanError

if TYPE_CHECKING:
    from engines.superscaler.graph import Graph
    from engines.superscaler.named.degrees import Degrees
    from engines.superscaler.plan import Plan


@dataclass(frozen=True)
class Recipe:
    """What tells one such plan from another."""

    main: str
    """The degree that takes the devices that are left: `data`, `pipeline` or `tensor`."""
    zero: int = 0
    """Stage of ZeRO over the replicas."""
    tokens: bool = False
    """Sequence parallelism beside the tensor parallelism."""
    experts: bool = False
    """Experts divided over the replicas."""
    schedule: str = "1f1b"
    chunks: int = 1
    """Stages on each group of devices, if nobody says."""


RECIPES = {
    "dp": Recipe("data"),
    "zero-1": Recipe("data", zero=1),
    "zero-2": Recipe("data", zero=2),
    "zero-3": Recipe("data", zero=3),
    "tp": Recipe("tensor"),
    "sp": Recipe("tensor", tokens=True),
    "ep": Recipe("data", experts=True),
    "gpipe": Recipe("pipeline", schedule="gpipe"),
    "1f1b": Recipe("pipeline"),
    "interleaved": Recipe("pipeline", schedule="interleaved", chunks=2),
    "zero-bubble": Recipe("pipeline", schedule="zero-bubble"),
    "hybrid": Recipe("data"),
}


def build(
    name: str,
    graph: Graph,
    devices: tuple[int, ...],
    *,
    micro_batches: int,
    data: int,
    pipeline: int,
    tensor: int,
    chunks: int,
    recompute: bool,
) -> Plan:
    """A plan of `RECIPES`.

    Raises:
        PlanError: degrees that do not fit the devices or the model.
    """
    recipe = RECIPES[name]
    sizes = degrees(name, len(devices), recipe.main, data, pipeline, tensor)
    each = (chunks if chunks > 1 else recipe.chunks) if recipe.schedule == "interleaved" else 1
    draft = Draft(
        graph, micro_batches, f"{name}: data {sizes.data} x pipeline {sizes.pipeline} x tensor {sizes.tensor}"
    )
    draft.origin["plan"] = name
    stages(draft, devices, sizes, each)
    split(draft, name, sizes, tokens=recipe.tokens, experts=recipe.experts)
    if recipe.zero and sizes.data > 1:
        transformation.shard_weights(draft, "*", "data", gradient=recipe.zero > 1, value=recipe.zero > 2)
    if recompute:
        recompute_layers(draft)
    scheduling.order(draft, blocks(recipe.schedule, sizes.pipeline * each, micro_batches, each))
    return draft.plan()


def stages(draft: Draft, devices: tuple[int, ...], sizes: Degrees, each: int) -> None:
    """op-assign: stages go around the groups of devices."""
    for number, ops in enumerate(cuts.cut(draft.graph, draft.graph.ops, sizes.pipeline * each)):
        group = sizes.group(devices, number % sizes.pipeline)
        scheduling.assign(draft, ops, group, sizes.axes, f"stage {number}")


def split(draft: Draft, name: str, sizes: Degrees, *, tokens: bool = False, experts: bool = False) -> None:
    """op-trans along both axes of every group."""
    along = splits.data(draft.graph, sizes.data, name, experts=experts)
    across = splits.tensor(draft.graph, sizes.tensor, name, along, sizes, tokens=tokens)
    splits.apply(draft, along, "data")
    splits.apply(draft, across, "tensor")


def recompute_layers(draft: Draft) -> None:
    """Keep what enters each layer, no more.

    Raises:
        PlanError: the model has no layers (modules numbered in a list).
    """
    found = cuts.layers([op.name for op in draft.graph.ops])
    if not found:
        raise PlanError("there is no layer to recompute: the model has no modules numbered in a list")
    for ops in found.values():
        transformation.recompute(draft, ops)


def blocks(schedule: str, stages: int, micro_batches: int, chunks: int) -> str | tuple[order.Block, ...]:
    """op-order."""
    return order.interleaved(stages, micro_batches, chunks) if schedule == "interleaved" else schedule
