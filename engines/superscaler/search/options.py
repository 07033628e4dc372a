"""op-trans: the ways to split an operator over the axes of a mesh, as a plan space allows them.

A layout of a tensor is written as a *code*: for each axis the dim it splits, `WHOLE` where devices hold equal copies,
or `ADDENDS` where they hold parts of a sum. An operator's splits give the codes of its tensors and of their gradients.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.api import PlanError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engines.superscaler.graph import Op
    from engines.superscaler.search.constraints import Rule, Space

WHOLE, ADDENDS = -1, -2
Code = tuple[int, ...]
Split = tuple[str, ...]


@dataclass(frozen=True)
class Option:
    """One way to split an operator."""

    split: Split
    degrees: Mapping[str, int]
    """Identifier -> into how many parts."""
    inputs: tuple[Code, ...]
    """Layouts in which it needs its inputs."""
    gradients: tuple[Code, ...]
    """Layouts in which the gradients of its inputs come."""
    outputs: tuple[Code, ...]
    """Layouts in which its outputs come."""
    wants: tuple[Code, ...]
    """Layouts in which it needs the gradients of its outputs."""

    def parts(self, code: Code, shape: tuple[int, ...]) -> int:
        """Into how many parts a layout divides a tensor over a mesh."""
        return math.prod(size for axis, size in zip(code, shape, strict=True) if axis >= 0)


def option(op: Op, split: Split, shape: tuple[int, ...]) -> Option:
    """What a split means for the operator's tensors, by the rules of `annotation`."""
    note = op.annotation
    degrees: dict[str, int] = {}
    for name, size in zip(split, shape, strict=True):
        if name:
            degrees[name] = degrees.get(name, 1) * size

    def code(place: int | None, name: str, missing: int) -> int:
        return WHOLE if not name else missing if place is None else place

    def codes(count: int, dim_of: object, missing: int) -> tuple[Code, ...]:
        return tuple(tuple(code(dim_of(n, x) if x else None, x, missing) for x in split) for n in range(count))  # type: ignore[operator]

    return Option(
        split,
        degrees,
        codes(len(op.inputs), note.input_dim, WHOLE),
        codes(len(op.inputs), note.input_dim, ADDENDS),
        codes(len(op.outputs), note.output_dim, ADDENDS),
        codes(len(op.outputs), note.output_dim, WHOLE),
    )


def options(op: Op, shape: tuple[int, ...], space: Space, batch: str) -> tuple[Option, ...]:
    """All that a plan space allows, in a fixed order: the one that splits nothing first.

    Args:
        op: the operator.
        shape: of the mesh.
        space: what is allowed.
        batch: the operator's identifier of the batch; '' if it has none.

    Raises:
        PlanError: nothing is left.
    """
    names = ("", *op.annotation.splittable())
    rules = [rule for rule in space.rules if rule.matches(op)]
    found = []
    for split in itertools.product(*[_along(axis, len(shape), names, space, batch) for axis in range(len(shape))]):
        one = option(op, split, shape)
        divides = all(op.annotation.sizes[name] % degree == 0 for name, degree in one.degrees.items())
        if divides and all(_allows(rule, one, math.prod(shape), batch) for rule in rules):
            found.append(one)
    if not found:
        wanted = ", ".join(rule.pattern for rule in rules)
        raise PlanError(
            f"operator {op.name!r}: space {space.name!r} leaves no split over a mesh of {shape} "
            f"(rules {wanted}); it can be split on {', '.join(op.annotation.splittable()) or 'nothing'}"
        )
    return tuple(found)


def _along(axis: int, axes: int, names: tuple[str, ...], space: Space, batch: str) -> tuple[str, ...]:
    """Identifiers along one axis. By Megatron, the outermost of two is data parallel and the other tensor parallel."""
    if space.layouts == "data":
        return (batch,)
    if space.layouts == "megatron" and axes == 2:
        return (batch,) if axis == 0 else tuple(name for name in names if name != batch or not name)
    return names


def _allows(rule: Rule, one: Option, devices: int, batch: str) -> bool:
    used = [name for name in dict.fromkeys(one.split) if name]
    if rule.identifiers is not None and any(name not in rule.identifiers for name in used):
        return False
    degree = math.prod(one.degrees.values())
    if not rule.least <= degree <= rule.most:
        return False
    if not rule.replica and degree < devices:
        return False
    if rule.one and used and (len(used) > 1 or "" in one.split):
        return False
    return rule.batch is None or (one.split[0] == batch) == rule.batch
