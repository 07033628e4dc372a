"""Where the tensors of a split operator lie: the rule from which all communication follows.

Along a mesh axis on which an operator is split by identifier x ('' for every device doing the same):

* an input that has x is needed split, and so comes its gradient; one that lacks x is needed whole, and its gradient
  comes in addends (with x = '', equal on all);
* an output that has x comes split, and its gradient is wanted split; one that lacks x comes in addends, and its
  gradient is wanted whole (with x = '', the output comes whole).

(nnScaler, OSDI 2024, op-trans; DTensor calls the addends `Partial`.)
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from engines.superscaler.layout import Layout, Mesh
from harness.api import PlanError, nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from engines.superscaler.annotation import Annotation, Reduction
    from engines.superscaler.graph import Op


class Need(NamedTuple):
    """How one tensor of an operator lies."""

    value: Layout
    """Needed (inputs), or as it comes (outputs)."""
    gradient: Layout
    """As it comes (inputs), or wanted (outputs)."""


class Operands(NamedTuple):
    """All tensors of a split operator, in the order of its annotation."""

    inputs: tuple[Need, ...]
    outputs: tuple[Need, ...]


def operands(op: Op, mesh: Mesh, split: Sequence[str]) -> Operands:
    """Layouts of an operator's tensors.

    Args:
        op: The operator.
        mesh: Of its stage; with its sequential axis if it is co-sharded.
        split: For every axis (the sequential one last) the identifier, or ''.

    Raises:
        PlanError: an identifier that the operator cannot be split on, or not into so many parts.
    """
    degrees = (*mesh.shape, mesh.sequential) if mesh.sequential > 1 else mesh.shape
    if len(split) != len(degrees):
        raise PlanError(
            f"operator {op.name!r}: expected a split for each of {len(degrees)} mesh axes, got {len(split)}"
        )
    check(op, split, degrees)
    # Along an axis of one device everything is whole: saying so makes equal layouts compare equal.
    axes = [(axis, name) for axis, name in enumerate(split) if name and degrees[axis] > 1]
    annotation = op.annotation
    inputs = tuple(_input(annotation, mesh, axes, number, len(dims)) for number, dims in enumerate(annotation.inputs))
    outputs = tuple(_output(op, mesh, axes, number, len(dims)) for number, dims in enumerate(annotation.outputs))
    return Operands(inputs, outputs)


def check(op: Op, split: Sequence[str], degrees: Sequence[int]) -> None:
    """Refuse what cannot be split like that.

    Raises:
        PlanError: names the operator, the identifier, and what could be done instead.
    """
    parts: dict[str, int] = {}
    for name, degree in zip(split, degrees, strict=True):
        if name:
            parts[name] = parts.get(name, 1) * degree
    possible = op.annotation.splittable()
    for name, degree in parts.items():
        if degree == 1:
            continue
        if name not in op.annotation.sizes:
            close = nearest(name, possible)
            hint = f"; did you mean {close!r}?" if close else ""
            raise PlanError(f"operator {op.name!r} has no identifier {name!r} (it has {_listed(possible)}){hint}")
        if name not in possible:
            raise PlanError(
                f"operator {op.name!r} ({op.annotation}) cannot be split on {name!r}, only on {_listed(possible)}"
            )
        size = op.annotation.sizes[name]
        if size % degree:
            allowed = [d for d in range(2, size + 1) if size % d == 0]
            raise PlanError(
                f"operator {op.name!r}: {name!r} of size {size} cannot be split into {degree} equal parts"
                f" (allowed: {_listed(map(str, allowed[:12]))})"
            )


def _listed(names: object) -> str:
    found = list(names)  # type: ignore[call-overload]
    return ", ".join(found) if found else "nothing"


def _input(annotation: Annotation, mesh: Mesh, axes: list[tuple[int, str]], number: int, rank: int) -> Need:
    dims, lacking = _placed(axes, rank, lambda name: annotation.input_dim(number, name))
    whole = Layout(mesh, dims)
    return Need(whole, Layout(mesh, dims, lacking) if lacking else whole)


def _output(op: Op, mesh: Mesh, axes: list[tuple[int, str]], number: int, rank: int) -> Need:
    dims, lacking = _placed(axes, rank, lambda name: op.annotation.output_dim(number, name))
    whole = Layout(mesh, dims)
    if not lacking:
        return Need(whole, whole)
    kinds: set[Reduction] = {op.annotation.reductions[name] for axis, name in axes if axis in lacking}
    if len(kinds) > 1:
        raise PlanError(f"operator {op.name!r} cannot be split on a sum and on a maximum at once")
    return Need(Layout(mesh, dims, lacking, kinds.pop()), whole)


def _placed(
    axes: list[tuple[int, str]], rank: int, place: Callable[[str], int | None]
) -> tuple[tuple[tuple[int, ...], ...], tuple[int, ...]]:
    """(axes that split each dim, axes whose identifier the tensor lacks)."""
    dims: list[tuple[int, ...]] = [()] * rank
    lacking: tuple[int, ...] = ()
    for axis, name in axes:
        dim = place(name)
        if dim is None:
            lacking += (axis,)
        else:
            dims[dim] += (axis,)
    return tuple(dims), lacking


def ways(annotation: Annotation, degree: int) -> tuple[str, ...]:
    """Identifiers that an operator can be split on into `degree` parts."""
    return tuple(name for name in annotation.splittable() if annotation.sizes[name] % degree == 0)


def parts_of(split: Sequence[str], degrees: Sequence[int]) -> dict[str, int]:
    """Identifier -> into how many parts a split divides it, over all axes."""
    found: dict[str, int] = {}
    for name, degree in zip(split, degrees, strict=False):
        if name:
            found[name] = math.prod((found.get(name, 1), degree))
    return found
