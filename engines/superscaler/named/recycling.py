"""3F1B: a model that is applied several times and differentiated through the last time alone (AlphaFold2).

Every pass is a pipeline of its own over the same devices, with the same weights; only the last has backward passes
(nnScaler, OSDI 2024, section on AlphaFold2).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engines.superscaler import order, scheduling
from engines.superscaler.draft import Draft
from engines.superscaler.fusion import differentiated
from engines.superscaler.named import cuts, hybrid
from engines.superscaler.named.degrees import degrees
from engines.superscaler.plan import Block
from harness.api import PlanError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engines.superscaler.graph import Graph, Op
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
    """As many forward pipelines as the model has passes.

    Raises:
        PlanError: the model is not applied more than once.
    """
    sizes = degrees(name, len(devices), "pipeline", data, pipeline, tensor)
    before, passes = divided(graph, name)
    draft = Draft(
        graph, micro_batches, f"{name}: {len(passes)} passes, pipeline {sizes.pipeline} x tensor {sizes.tensor}"
    )
    draft.origin["plan"] = name
    if before:
        scheduling.assign(draft, [op.name for op in before], sizes.group(devices, 0), sizes.axes, "inputs")
    for number, stages in enumerate(_stages(graph, passes, sizes.pipeline)):
        for place, ops in enumerate(stages):
            group = sizes.group(devices, place)
            scheduling.assign(draft, ops, group, sizes.axes, f"pass {number}, stage {place}")
    hybrid.split(draft, name, sizes)
    if recompute:
        hybrid.recompute_layers(draft)
    blocks = order.recycling(len(passes) * sizes.pipeline, micro_batches, len(passes))
    scheduling.order(draft, _with_inputs(blocks, (len(passes) - 1) * sizes.pipeline) if before else blocks)
    return draft.plan()


def divided(graph: Graph, name: str) -> tuple[list[Op], list[list[Op]]]:
    """(operators before the first pass that are differentiated, operators of each pass).

    Raises:
        PlanError: the model is not applied more than once, or every time with gradients (a shared table, say).
    """
    active = differentiated(graph)
    count = 1 + max(cuts.call(op.name) for op in graph.ops)
    if count == 1:
        raise PlanError(f"plan {name!r} is for models that apply the same layers several times; this one does not")
    before: list[Op] = []
    passes: list[list[Op]] = [[] for _ in range(count)]
    current = 0
    for op in graph.ops:
        current = max(current, cuts.call(op.name))
        if op.name in active and current < count - 1:
            before.append(op)
        else:
            passes[current].append(op)
    if not all(any(cuts.weights_of(graph, op) for op in ops) for ops in passes):
        raise PlanError(
            f"plan {name!r}: the model has no recycled passes (what it applies several times has gradients every time)"
        )
    return before, passes


def _stages(graph: Graph, passes: Sequence[Sequence[Op]], groups: int) -> list[tuple[tuple[str, ...], ...]]:
    """Stages of each pass: the last is cut evenly, the others so that a weight is used on the same devices."""
    last = cuts.cut(graph, passes[-1], groups)
    place = {t: n for n, ops in enumerate(last) for op in ops for t in cuts.weights_of(graph, graph.by_name[op])}
    found = []
    for ops in passes[:-1]:
        stages: list[list[str]] = [[] for _ in range(groups)]
        current = 0
        for op in ops:
            current = max([current, *(place[t] for t in cuts.weights_of(graph, op) if t in place)])
            stages[current].append(op.name)
        if not all(stages):
            raise PlanError(f"a pass of {len(ops)} operators cannot be cut into {groups} stages like the last one")
        found.append(tuple(map(tuple, stages)))
    return [*found, last]


def _with_inputs(blocks: Sequence[Block], last: int) -> tuple[Block, ...]:
    """The order with one more stage in front, whose passes come right before and right after those that need them."""
    found: list[Block] = []
    for block in blocks:
        moved = block._replace(stage=block.stage + 1)
        if block.stage == 0 and block.what == "F":
            found.append(Block(0, block.micro_batch, "F"))
        found.append(moved)
        if block.stage == last and block.what == "B":
            found.append(Block(0, block.micro_batch, "B"))
    return tuple(found)
