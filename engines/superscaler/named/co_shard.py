"""Co-shard: parts of layers done in pieces on the same device, one after another, each recomputed.

It lowers the most that a device has to hold, without communication: what tensor parallelism does over devices, done in
time instead (nnScaler, OSDI 2024, section on Swin-Transformer: attention and feed-forward of the first layers).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engines.superscaler import propagation, scheduling, transformation
from engines.superscaler.draft import Draft
from engines.superscaler.named import cuts, hybrid
from engines.superscaler.named.degrees import degrees
from engines.superscaler.operands import parts_of
from engines.superscaler.propagation import fits
from harness.api import PlanError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from engines.superscaler.graph import Graph
    from engines.superscaler.plan import Plan


def build(
    name: str,
    graph: Graph,
    devices: tuple[int, ...],
    *,
    micro_batches: int,
    data: int,
    pipeline: int,
    tensor: int,
    parts: int = 2,
    layers: int = 0,
) -> Plan:
    """Tensor parallelism, with parts of layers co-sharded.

    Args:
        name: Of the plan.
        graph: The model.
        devices: Ranks.
        micro_batches: Of a step.
        data: Replicas (0: what is left).
        pipeline: Groups of devices.
        tensor: Tensor-parallel degree.
        parts: Pieces that each device does one after another.
        layers: How many of the first layers; 0: all.

    Raises:
        PlanError: nothing in the model can be done in so many parts.
    """
    sizes = degrees(name, len(devices), "tensor", data, pipeline, tensor)
    draft = Draft(graph, micro_batches, f"{name}: {parts} parts x data {sizes.data} x tensor {sizes.tensor}")
    draft.origin["plan"] = name
    hybrid.stages(draft, devices, sizes, 1)
    hybrid.split(draft, name, sizes)
    already = {
        op.name: parts_of([draft.splits.get((op.name, axis), "") for axis in sizes.axes], list(sizes.axes.values()))
        for op in graph.ops
    }
    chosen = list(cuts.layers([op.name for op in graph.ops]))
    kept = set(chosen[:layers] if layers else chosen)
    done = [region for region in regions(graph, kept) if _co_shard(draft, region, parts, already)]
    if not done:
        raise PlanError(f"plan {name!r}: no part of a layer can be done in {parts} pieces; try fewer")
    scheduling.order(draft, "1f1b")
    return draft.plan()


def regions(graph: Graph, layers: set[str]) -> list[tuple[str, ...]]:
    """Parts of layers (attention, feed-forward): operators of one module within a layer that stand together.

    A layer without such parts is one itself.
    """
    found = _together(graph, lambda op: cuts.block(op) if cuts.layer(op) in layers else "")
    parted = {cuts.layer(ops[0]) for ops in found}
    return [*found, *_together(graph, lambda op: cuts.layer(op) if cuts.layer(op) in layers - parted else "")]


def _together(graph: Graph, part: Callable[[str], str]) -> list[tuple[str, ...]]:
    found: list[list[str]] = []
    current = ""
    for op in graph.ops:
        name = part(op.name)
        if name and name == current:
            found[-1].append(op.name)
        elif name:
            found.append([op.name])
        current = name
    return [tuple(ops) for ops in found if len(ops) > 1]


def _co_shard(draft: Draft, region: Sequence[str], parts: int, already: Mapping[str, Mapping[str, int]]) -> bool:
    """Do a region in pieces if it can be: split on features between two products, else on the batch."""
    graph, fit = draft.graph, fits(parts, already)
    features = propagation.megatron(graph, fit, region, lookups=False)
    start = {graph.by_name[op].inputs[0] for op in region[:1]}
    batch = propagation.follow(graph, fit, dict.fromkeys(sorted(start), 0), dict.fromkeys(_others(graph, region), ""))
    for found in (features, batch):
        split = [op for op in region if found.get(op)]
        if len(split) < 2:
            continue
        inner = region[region.index(split[0]) : region.index(split[-1]) + 1]
        one_stage = len({draft.stage_of(op).name for op in inner}) == 1
        if one_stage and list(inner) == split and _sent(draft, inner):
            transformation.co_shard(draft, inner, parts, {op: found[op] for op in inner})
            return True
    return False


def _others(graph: Graph, region: Sequence[str]) -> list[str]:
    inside = set(region)
    return [op.name for op in graph.ops if op.name not in inside]


def _sent(draft: Draft, ops: Sequence[str]) -> bool:
    """Whether nothing within is sent between devices: the same tensors are split, or not, on both ends of each edge."""
    from engines.superscaler.draft import mesh_of
    from engines.superscaler.operands import operands

    made = {}
    for name in ops:
        op, stage = draft.graph.by_name[name], draft.stage_of(name)
        layouts = operands(op, mesh_of(stage), [draft.splits.get((name, axis), "") for axis in stage.axes])
        for tensor, need in zip(op.inputs, layouts.inputs, strict=True):
            if tensor in made and made[tensor] != need:
                return False
        made.update(zip(op.outputs, layouts.outputs, strict=True))
    return True
