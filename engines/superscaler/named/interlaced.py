"""Interlaced pipeline: a huge embedding and head lie on all devices, the layers between are pipelined.

Both share the devices in time (nnScaler, OSDI 2024, section on T5 and other models with large vocabularies).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engines.superscaler import order, scheduling
from engines.superscaler.draft import Draft
from engines.superscaler.named import cuts, hybrid, splits
from engines.superscaler.named.degrees import Degrees, degrees
from harness.api import PlanError

if TYPE_CHECKING:
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
    recompute: bool = False,
) -> Plan:
    """Embedding and head split over all devices, stages between them on groups of `data` x `tensor`.

    Raises:
        PlanError: the model has no table at its start and product with one at its end.
    """
    sizes = degrees(name, len(devices), "pipeline", data, pipeline, tensor)
    first, middle, last = parts(graph, name)
    draft = Draft(graph, micro_batches, f"{name}: pipeline {sizes.pipeline} x tensor {sizes.tensor}")
    draft.origin["plan"] = name
    everywhere = Degrees(sizes.data, 1, sizes.pipeline * sizes.tensor)
    scheduling.assign(draft, first, devices, everywhere.axes, "embedding")
    for number, ops in enumerate(cuts.cut(graph, [graph.by_name[op] for op in middle], sizes.pipeline)):
        scheduling.assign(draft, ops, sizes.group(devices, number), sizes.axes, f"stage {number}")
    scheduling.assign(draft, last, devices, everywhere.axes, "head")
    along = splits.data(graph, sizes.data, name)
    splits.apply(draft, along, "data")
    inner, outer = set(middle), {*first, *last}
    for degree, members in ((everywhere.tensor, outer), (sizes.tensor, inner)):
        found = splits.tensor(graph, degree, name, along, sizes, tokens=False)
        splits.apply(draft, {op: x for op, x in found.items() if op in members}, "tensor")
    if recompute:
        hybrid.recompute_layers(draft)
    count = sizes.pipeline + 2
    scheduling.order(draft, order.interlaced(count, micro_batches, {0, count - 1}))
    return draft.plan()


def parts(graph: Graph, name: str) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """(operators of look-ups that need nothing but the batch, the layers, the head and the loss).

    Raises:
        PlanError: one of them is empty.
    """
    ops = [op.name for op in graph.ops]
    lookups = [op for op in graph.ops if op.target == "embedding" and set(op.inputs) & set(graph.inputs)]
    rows = max((graph.tensors[t].shape[0] for op in lookups for t in cuts.weights_of(graph, op)), default=0)
    looked = [op for op in lookups if any(graph.tensors[t].shape[0] == rows for t in cuts.weights_of(graph, op))]
    ends = [
        number
        for number, op in enumerate(graph.ops)
        if op.target != "embedding" and any(graph.tensors[t].shape[0] == rows for t in cuts.weights_of(graph, op))
    ]
    if not looked or not ends:
        raise PlanError(f"plan {name!r} is for models that start with a large table and end with a product by one")
    last = ops[ends[-1] :]
    made = {t for op in graph.ops if op.name in last for t in op.outputs}
    first = [op.name for op in looked if op.name not in last and not any(t in made for t in op.inputs)]
    middle = [op for op in ops if op not in set(first) | set(last)]
    return tuple(first), tuple(middle), tuple(last)
