"""Whether a plan can be carried out at all: said before anything is derived from it, and in the plan's own terms."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engines.superscaler.plan import Block
from harness.api import PlanError, nearest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Set

    from engines.superscaler.graph import Graph
    from engines.superscaler.plan import Pass, Plan, Stage


def check(graph: Graph, plan: Plan, active: Set[str]) -> None:
    """Refuse a plan that is not one for this graph.

    Args:
        graph: The model.
        plan: To be checked.
        active: Operators that the loss's gradient flows through (`fusion.differentiated`).

    Raises:
        PlanError: what is wrong, where, and what would do.
    """
    if plan.graph and graph.digest and plan.graph != graph.digest:
        raise PlanError(f"the plan is for another model: its graph is {plan.graph[:12]}, this one {graph.digest[:12]}")
    if plan.micro_batches < 1:
        raise PlanError(f"a step has at least one micro-batch, not {plan.micro_batches}")
    _check_assignment(graph, plan)
    for stage in plan.stages:
        _check_stage(graph, stage)
    _check_weights(graph, plan)
    edges = stage_edges(graph, plan)
    _check_acyclic(plan, edges)
    check_order(plan, edges, {plan.stage_of[op] for op in active}, gradient_edges(graph, plan, active))


def stage_edges(graph: Graph, plan: Plan) -> dict[tuple[int, int], str]:
    """(stage that makes, stage that reads) -> the first tensor that goes from one to the other."""
    found: dict[tuple[int, int], str] = {}
    for op in graph.ops:
        for tensor in op.inputs:
            if tensor in graph.producer:
                edge = plan.stage_of[graph.producer[tensor]], plan.stage_of[op.name]
                if edge[0] != edge[1]:
                    found.setdefault(edge, tensor)
    return found


def gradient_edges(graph: Graph, plan: Plan, active: Set[str]) -> dict[tuple[int, int], str]:
    """The same of those tensors whose gradient comes back."""
    found: dict[tuple[int, int], str] = {}
    for op in graph.ops:
        for tensor in op.inputs:
            if op.name in active and tensor in graph.producer and graph.tensors[tensor].requires_grad:
                edge = plan.stage_of[graph.producer[tensor]], plan.stage_of[op.name]
                if edge[0] != edge[1]:
                    found.setdefault(edge, tensor)
    return found


def _check_assignment(graph: Graph, plan: Plan) -> None:
    owner: dict[str, str] = {}
    for stage in plan.stages:
        for op in stage.ops:
            if op not in graph.by_name:
                raise PlanError(f"stage {stage.name!r}: no operator {op!r} in the model{_hint(op, graph.by_name)}")
            if op in owner:
                raise PlanError(f"operator {op!r} is in two stages, {owner[op]!r} and {stage.name!r}")
            owner[op] = stage.name
    left = [op.name for op in graph.ops if op.name not in owner]
    if left:
        raise PlanError(f"{len(left)} operators have no stage: {_some(left)}")


def _check_stage(graph: Graph, stage: Stage) -> None:
    if not stage.ops:
        raise PlanError(f"stage {stage.name!r} has no operators")
    if stage.mesh.sequential != 1:
        raise PlanError(f"stage {stage.name!r}: a stage's mesh has no sequential axis; a co-sharded group has")
    place = {op.name: number for number, op in enumerate(graph.ops)}
    places = [place[op] for op in stage.ops]
    if places != sorted(places):
        late = next(op for op, a, b in zip(stage.ops[1:], places, places[1:], strict=False) if b < a)
        raise PlanError(f"stage {stage.name!r}: operators are not in the model's order; {late!r} comes too late")
    missing = [op for op in stage.ops if op not in stage.splits]
    if missing:
        raise PlanError(f"stage {stage.name!r}: no split is given for {_some(missing)} ('' on an axis replicates)")
    unknown = sorted(set(stage.splits) - set(stage.ops))
    if unknown:
        raise PlanError(
            f"stage {stage.name!r}: splits {unknown[0]!r}, which is not in it{_hint(unknown[0], stage.ops)}"
        )
    at = {op: number for number, op in enumerate(stage.ops)}
    end = 0
    for group in stage.groups:
        strange = [op for op in group.ops if op not in at]
        if strange:
            raise PlanError(f"stage {stage.name!r}: a group has {strange[0]!r}, which is not in it")
        if group.parts < 1 or not group.ops:
            raise PlanError(f"stage {stage.name!r}: a group has at least one operator and one part")
        numbers = [at[op] for op in group.ops]
        if numbers != list(range(numbers[0], numbers[0] + len(numbers))):
            raise PlanError(f"stage {stage.name!r}: the group from {group.ops[0]!r} has a gap or is out of order")
        if numbers[0] < end:
            raise PlanError(
                f"stage {stage.name!r}: the group from {group.ops[0]!r} overlaps another, or is out of order"
            )
        end = numbers[-1] + 1


def _check_weights(graph: Graph, plan: Plan) -> None:
    home: dict[str, str] = {}
    for stage in plan.stages:
        for op in stage.ops:
            for tensor in graph.by_name[op].inputs:
                if graph.tensors[tensor].role == "parameter":
                    home.setdefault(tensor, stage.name)
    for stage in plan.stages:
        for tensor in stage.weights:
            if tensor not in home:
                raise PlanError(f"stage {stage.name!r}: no weight {tensor!r} is used{_hint(tensor, home)}")
            if home[tensor] != stage.name:
                raise PlanError(
                    f"weight {tensor!r} is kept by stage {home[tensor]!r}, not by {stage.name!r}: say it there"
                )


def _check_acyclic(plan: Plan, edges: Mapping[tuple[int, int], str]) -> None:
    import networkx as nx

    stages = nx.DiGraph(sorted(edges))
    try:
        cycle = nx.find_cycle(stages)
    except nx.NetworkXNoCycle:
        return
    steps = " -> ".join(f"{plan.stages[a].name} ({edges[a, b]})" for a, b, *_ in cycle)
    raise PlanError(
        f"stages need each other: {steps} -> {plan.stages[cycle[0][0]].name}; no order of blocks can do that"
    )


def check_order(
    plan: Plan, edges: Iterable[tuple[int, int]], active: Set[int], backward: Iterable[tuple[int, int]]
) -> None:
    """Refuse an order of blocks that lacks one, has one twice, or has one before what it needs.

    Args:
        plan: With the order.
        edges: (stage, stage that reads from it).
        active: Stages that have a backward pass.
        backward: Edges that a gradient comes back along.

    Raises:
        PlanError: names the blocks.
    """
    place: dict[Block, int] = {}
    for number, block in enumerate(plan.order):
        if not 0 <= block.stage < len(plan.stages) or not 0 <= block.micro_batch < plan.micro_batches:
            raise PlanError(
                f"the order has {tuple(block)}, but there are {len(plan.stages)} stages and {plan.micro_batches}"
                " micro-batches"
            )
        if block.what not in ("F", "B", "W"):
            raise PlanError(f"the order has a block of kind {block.what!r}; expected 'F', 'B' or 'W'")
        if block in place:
            raise PlanError(f"the order has {said(plan, block)} twice")
        place[block] = number
    split = {block.stage for block in plan.order if block.what == "W"}
    for m in range(plan.micro_batches):
        for stage in range(len(plan.stages)):
            kinds: list[Pass] = ["F"]
            kinds += ["B"] if stage in active else []
            kinds += ["W"] if stage in split else []
            for what in kinds:
                if Block(stage, m, what) not in place:
                    raise PlanError(f"the order lacks {said(plan, Block(stage, m, what))}")
            _before(plan, place, Block(stage, m, "F"), Block(stage, m, "B"))
            _before(plan, place, Block(stage, m, "B"), Block(stage, m, "W"))
        for a, b in edges:
            _before(plan, place, Block(a, m, "F"), Block(b, m, "F"))
        for a, b in backward:
            _before(plan, place, Block(b, m, "B"), Block(a, m, "B"))


def _before(plan: Plan, place: Mapping[Block, int], first: Block, second: Block) -> None:
    if second in place and (first not in place or place[first] > place[second]):
        raise PlanError(f"the order has {said(plan, second)} before {said(plan, first)}, which it needs")


def said(plan: Plan, block: Block) -> str:
    """A block in words."""
    what = {"F": "forward", "B": "backward", "W": "weight gradients"}[block.what]
    return f"the {what} of stage {plan.stages[block.stage].name!r} for micro-batch {block.micro_batch}"


def _hint(word: str, choices: Iterable[str]) -> str:
    close = nearest(word, choices)
    return f"; did you mean {close!r}?" if close else ""


def _some(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:3]))
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
