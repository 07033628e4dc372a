"""Operators joined into runs: what a rank computes without communicating, and autograd differentiates in one go.

An edge between two operators is *trivial* if the consumer needs a tensor as the producer makes it, and its gradient
comes as the producer wants it. Runs are cut at all other edges, forward or backward (and where they would gather too
many weights at once, with ZeRO-3), and consist of neighbours in the graph's order; an interval of a topological order
is convex, so that no path leaves a run and comes back.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engines.superscaler.layout import Layout, Mesh
from engines.superscaler.operands import Need, Operands, operands
from harness.api import PlanError

if TYPE_CHECKING:
    from collections.abc import Mapping, Set

    from engines.superscaler.graph import Graph, Op
    from engines.superscaler.plan import Group, Plan, Stage


@dataclass
class Fused:
    """A run in the making."""

    number: int
    stage: int
    mesh: Mesh
    ops: list[str] = field(default_factory=list)
    splits: dict[str, tuple[str, ...]] = field(default_factory=dict)
    inputs: dict[str, Layout] = field(default_factory=dict)
    """Tensors read from outside, and as what (with the sequential axis, if there is one)."""
    gradients: dict[str, Layout] = field(default_factory=dict)
    """Gradients that it yields."""
    made: dict[str, Need] = field(default_factory=dict)
    """What its operators make."""


@dataclass(frozen=True)
class Segment:
    """A recomputed (or co-sharded) group, or one run outside of any."""

    group: Group | None
    runs: tuple[Fused, ...]


def differentiated(graph: Graph) -> frozenset[str]:
    """Operators that the loss's gradient flows through."""
    flowing = {graph.loss} if graph.tensors[graph.loss].requires_grad else set()
    found = set()
    for op in reversed(graph.ops):
        if flowing.intersection(op.outputs):
            found.add(op.name)
            flowing.update(tensor for tensor in op.inputs if graph.tensors[tensor].requires_grad)
    return frozenset(found)


def fuse(graph: Graph, plan: Plan, active: Set[str]) -> tuple[tuple[Segment, ...], ...]:
    """Runs of every stage, numbered throughout, in the order in which they are computed.

    Raises:
        PlanError: a split that an operator does not allow, or communication within a co-sharded group.
    """
    gathered = {tensor for stage in plan.stages for tensor, weight in stage.weights.items() if weight.value}
    stages, count = [], 0
    for number, stage in enumerate(plan.stages):
        segments = _Fusion(graph, stage, number, active, gathered, count).segments()
        count += sum(len(segment.runs) for segment in segments)
        stages.append(segments)
    return tuple(stages)


class _Fusion:
    """Of one stage."""

    def __init__(
        self, graph: Graph, stage: Stage, number: int, active: Set[str], gathered: Set[str], first: int
    ) -> None:
        self.graph, self.stage, self.number, self.active = graph, stage, number, active
        self.count = first
        read = {tensor for op in stage.ops for tensor in graph.by_name[op].inputs}
        self.gathered = {tensor: graph.tensors[tensor].elements for tensor in sorted(gathered & read)}
        # All weights of a run are there at once. Twice the largest is little more than what one operator needs.
        self.limit = 2 * max(self.gathered.values(), default=0)

    def segments(self) -> tuple[Segment, ...]:
        """Groups and runs outside of groups, in order."""
        group_of = {op: group for group in self.stage.groups for op in group.ops}
        found: list[Segment] = []
        at = 0
        while at < len(self.stage.ops):
            group = group_of.get(self.stage.ops[at])
            end = at
            while end < len(self.stage.ops) and group_of.get(self.stage.ops[end]) is group:
                end += 1
            ops = [self.graph.by_name[name] for name in self.stage.ops[at:end]]
            if group is None:
                found += (Segment(None, (run,)) for run in self._runs(ops, self.stage.mesh, self.stage.splits))
            elif group.parts == 1:
                found.append(Segment(group, tuple(self._runs(ops, self.stage.mesh, self.stage.splits))))
            else:
                found.append(Segment(group, (self._co_sharded(ops, group),)))
            at = end
        return tuple(found)

    def _runs(self, ops: list[Op], mesh: Mesh, splits: Mapping[str, tuple[str, ...]]) -> list[Fused]:
        runs: list[Fused] = []
        for op in ops:
            layouts = operands(op, mesh, splits[op.name])
            if not runs or self._obstacle(runs[-1], op, layouts) or self._overfull(runs[-1], op):
                runs.append(self._new(mesh))
            self._join(runs[-1], op, splits[op.name], layouts)
        return runs

    def _co_sharded(self, ops: list[Op], group: Group) -> Fused:
        mesh = Mesh(self.stage.mesh.devices, self.stage.mesh.shape, group.parts)
        run = self._new(mesh)
        for op in ops:
            split = (*self.stage.splits[op.name], group.splits.get(op.name, ""))
            layouts = operands(op, mesh, split)
            if obstacle := self._obstacle(run, op, layouts):
                raise PlanError(f"stage {self.stage.name!r}, co-sharded group of {ops[0].name!r}: {obstacle}")
            self._join(run, op, split, layouts)
        return run

    def _new(self, mesh: Mesh) -> Fused:
        self.count += 1
        return Fused(self.count - 1, self.number, mesh)

    def _overfull(self, run: Fused, op: Op) -> bool:
        """Whether a run would gather too many weights that are kept divided (ZeRO-3)."""
        new = {tensor for tensor in op.inputs if tensor in self.gathered and tensor not in run.inputs}
        held = sum(self.gathered[tensor] for tensor in run.inputs if tensor in self.gathered)
        return bool(new) and held + sum(self.gathered[tensor] for tensor in new) > self.limit

    def _obstacle(self, run: Fused, op: Op, layouts: Operands) -> str:
        """Why an operator cannot join a run, or an empty string."""
        for tensor, need in zip(op.inputs, layouts.inputs, strict=True):
            flows = op.name in self.active and self.graph.tensors[tensor].requires_grad
            if tensor in run.made:
                made = run.made[tensor]
                maker = self.graph.producer[tensor]
                if made.value != need.value:
                    return f"the edge {maker} -> {op.name} ({tensor}) needs communication"
                if flows and made.gradient != need.gradient:
                    return f"the edge {maker} -> {op.name} ({tensor}) needs communication of its gradient"
            elif tensor in run.inputs:
                if run.inputs[tensor] != need.value:
                    return f"{op.name} needs {tensor} in another layout than operators before it"
                if flows and run.gradients.get(tensor, need.gradient) != need.gradient:
                    return f"the gradient of {tensor} comes from {op.name} in another layout than from those before it"
        return ""

    def _join(self, run: Fused, op: Op, split: tuple[str, ...], layouts: Operands) -> None:
        run.ops.append(op.name)
        run.splits[op.name] = tuple(split)
        seen: dict[str, Need] = {}
        for tensor, need in zip(op.inputs, layouts.inputs, strict=True):
            if seen.setdefault(tensor, need) != need:
                raise PlanError(f"operator {op.name!r} reads {tensor!r} twice, and its split needs it in two layouts")
            if tensor in run.made:
                continue
            run.inputs[tensor] = need.value
            if op.name in self.active and self.graph.tensors[tensor].requires_grad:
                run.gradients[tensor] = need.gradient
        for tensor, need in zip(op.outputs, layouts.outputs, strict=True):
            if need.value.partial and need.value.reduction == "max" and op.name in self.active:
                raise PlanError(f"operator {op.name!r} is split on a maximum, whose gradient cannot be divided")
            run.made[tensor] = need
