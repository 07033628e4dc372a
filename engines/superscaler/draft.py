"""A plan in the making: what `transformation` (op-trans) and `scheduling` (op-assign, op-order) write into.

Both phases leave rules, in whichever sequence they are called; `Draft.plan` resolves them. Operators are named by
patterns over qualified names (`layers.*.feed_forward.up`), mesh axes by names (`tp`). Later rules override earlier.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from engines.superscaler.layout import Mesh
from engines.superscaler.operands import check, operands
from engines.superscaler.plan import Group, Plan, Stage, Weight
from harness.api import PlanError, nearest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from engines.superscaler.graph import Graph
    from engines.superscaler.plan import Block


@dataclass(frozen=True)
class Assigned:
    """A stage: operators, devices and named axes."""

    name: str
    ops: frozenset[str]
    devices: tuple[int, ...]
    axes: Mapping[str, int]


@dataclass(frozen=True)
class Grouped:
    """Operators to be recomputed together, or co-sharded."""

    ops: frozenset[str]
    parts: int = 1
    splits: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Sharded:
    """Weights to be kept, or updated, divided along an axis."""

    weights: frozenset[str]
    axis: str
    gradient: bool
    value: bool


@dataclass
class Draft:
    """Rules of both phases over one graph."""

    graph: Graph
    micro_batches: int = 1
    name: str = ""
    stages: list[Assigned] = field(default_factory=list)
    splits: dict[tuple[str, str], str] = field(default_factory=dict)
    """(operator, axis) -> identifier, or '' for every device doing the same."""
    groups: list[Grouped] = field(default_factory=list)
    sharded: list[Sharded] = field(default_factory=list)
    order: tuple[Block, ...] = ()
    origin: dict[str, str] = field(default_factory=dict)

    def match(self, patterns: str | Iterable[str]) -> tuple[str, ...]:
        """Operators whose names match any of some patterns, in the graph's order.

        Raises:
            PlanError: a pattern matches none; says the nearest name.
        """
        return matching([op.name for op in self.graph.ops], patterns, "operator")

    def axes_of(self, op: str) -> Mapping[str, int]:
        """Named axes of an operator's stage.

        Raises:
            PlanError: it has no stage.
        """
        return self.stage_of(op).axes

    def stage_of(self, op: str) -> Assigned:
        """The stage an operator is assigned to; the last that claims it."""
        for stage in reversed(self.stages):
            if op in stage.ops:
                return stage
        raise PlanError(f"operator {op!r} has no stage: assign it")

    def plan(self) -> Plan:
        """The plan that the rules add up to.

        Raises:
            PlanError: rules that contradict the graph or one another.
        """
        if not self.stages:
            raise PlanError("no operator is assigned to any device")
        members: dict[str, list[str]] = {stage.name: [] for stage in self.stages}
        if len(members) < len(self.stages):
            raise PlanError("two stages have the same name")
        for op in self.graph.ops:
            members[self.stage_of(op.name).name].append(op.name)
        kept = [stage for stage in self.stages if members[stage.name]]
        self._check_axes(kept)
        homes: set[str] = set()
        stages = tuple(self._stage(stage, members[stage.name], homes) for stage in kept)
        if not self.order:
            raise PlanError("the plan has no order of blocks: give one (op-order)")
        return Plan(self.graph.digest, stages, self.micro_batches, self.order, self.name, dict(self.origin))

    def _check_axes(self, stages: Sequence[Assigned]) -> None:
        known = {axis for stage in stages for axis in stage.axes}
        used = {axis for _, axis in self.splits} | {shard.axis for shard in self.sharded}
        for axis in sorted(used - known):
            close = nearest(axis, known)
            hint = f"; did you mean {close!r}?" if close else ""
            raise PlanError(f"no stage has a mesh axis {axis!r} (there are {', '.join(sorted(known)) or 'none'}){hint}")

    def _stage(self, stage: Assigned, ops: list[str], homes: set[str]) -> Stage:
        mesh = mesh_of(stage)
        splits = {op: tuple(self.splits.get((op, axis), "") for axis in stage.axes) for op in ops}
        for op, split in splits.items():
            check(self.graph.by_name[op], split, mesh.shape)
        groups = [group for rule in self.groups for group in _gathered(rule, ops)]
        place = {op: number for number, op in enumerate(ops)}
        groups.sort(key=lambda group: place[group.ops[0]])
        return Stage(stage.name, tuple(ops), mesh, splits, tuple(groups), self._weights(stage, mesh, splits, homes))

    def _weights(
        self, stage: Assigned, mesh: Mesh, splits: Mapping[str, tuple[str, ...]], homes: set[str]
    ) -> dict[str, Weight]:
        names = list(stage.axes)
        found: dict[str, Weight] = {}
        for op in splits:
            for number, tensor in enumerate(self.graph.by_name[op].inputs):
                if self.graph.tensors[tensor].role != "parameter" or tensor in homes:
                    continue
                homes.add(tensor)
                rules = [rule for rule in self.sharded if tensor in rule.weights and rule.axis in names]
                if not rules:
                    continue
                layout = operands(self.graph.by_name[op], mesh, splits[op]).inputs[number].value
                weight = _divided(self.graph.tensors[tensor].shape, layout.dims, mesh.shape, names, rules)
                if weight.axes:
                    found[tensor] = weight
        return found


def mesh_of(stage: Assigned) -> Mesh:
    """The mesh of a stage.

    Raises:
        PlanError: devices twice, or not as many as the axes make.
    """
    if len(set(stage.devices)) != len(stage.devices):
        twice = sorted({d for d in stage.devices if stage.devices.count(d) > 1})
        raise PlanError(f"stage {stage.name!r} has device {twice[0]} twice")
    size = math.prod(stage.axes.values())
    if size != len(stage.devices):
        axes = " x ".join(f"{name} {degree}" for name, degree in stage.axes.items())
        raise PlanError(f"stage {stage.name!r} has {len(stage.devices)} devices, but its axes ({axes}) make {size}")
    return Mesh(tuple(stage.devices), tuple(stage.axes.values()))


def _gathered(rule: Grouped, ops: Sequence[str]) -> list[Group]:
    """A rule's operators as groups without a gap."""
    found: list[Group] = []
    run: list[str] = []
    for op in (*ops, ""):
        if op in rule.ops:
            run.append(op)
        elif run:
            splits = {name: rule.splits[name] for name in run if rule.splits.get(name)}
            found.append(Group(tuple(run), rule.parts, splits))
            run = []
    return found


def _divided(
    shape: tuple[int, ...],
    dims: tuple[tuple[int, ...], ...],
    degrees: tuple[int, ...],
    names: Sequence[str],
    rules: Sequence[Sharded],
) -> Weight:
    """Where a weight can be divided: along each axis the first dim that divides, none if it does not."""
    parts = [math.prod(degrees[axis] for axis in axes) for axes in dims]
    axes: list[tuple[int, int]] = []
    for axis in dict.fromkeys(names.index(rule.axis) for rule in rules):
        if degrees[axis] == 1 or any(axis in split for split in dims):
            continue
        for dim, size in enumerate(shape):
            if size % (parts[dim] * degrees[axis]) == 0:
                axes.append((axis, dim))
                parts[dim] *= degrees[axis]
                break
    return Weight(tuple(axes), rules[-1].gradient, rules[-1].value)


def matching(names: Sequence[str], patterns: str | Iterable[str], what: str) -> tuple[str, ...]:
    """Names that match any of some patterns, in their own order.

    Raises:
        PlanError: a pattern matches none; says the nearest.
    """
    wanted = (patterns,) if isinstance(patterns, str) else tuple(patterns)
    known = set(names)
    found: set[str] = set()
    for pattern in wanted:
        # A name itself, even one with characters that mean something in patterns, is the common case.
        hits = [pattern] if pattern in known else [name for name in names if fnmatchcase(name, pattern)]
        if not hits:
            close = nearest(pattern, names)
            hint = f"; did you mean {close!r}?" if close else ""
            raise PlanError(f"no {what} matches {pattern!r}{hint}")
        found.update(hits)
    return tuple(name for name in names if name in found)
