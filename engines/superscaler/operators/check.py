"""Operator by operator: is what an annotation says true?

For every identifier that an annotation lets a plan split, and every two of them, the inputs are cut, the parts computed
one by one, and what comes out is put together as `annotation` says: it must equal the whole, and so must the gradients
of all inputs. Everything a plan derives rests on that; check your own operators with it.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from engines.superscaler.operators import Part, context, find
from engines.superscaler.operators.table import OperatorError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from engines.superscaler.annotation import Dim
    from engines.superscaler.graph import Graph, Op

TOLERANCE = 1e-9
"""Relative to the largest number of the whole; computed in float64."""
Computed = tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor | None]]
"""Outputs, the gradients they are given, and the gradients of inputs."""


@dataclass(frozen=True)
class Finding:
    """An operator that is not what its annotation says."""

    op: str
    target: str
    annotation: str
    split: tuple[str, ...]
    """The identifiers it was split on."""
    what: str
    """`output 0`, `gradient of input 1 (weight)`, or what the operator raised."""
    error: float
    """Largest difference, relative to the largest number of the whole."""

    def __str__(self) -> str:
        split = " and ".join(map(repr, self.split))
        return f"{self.target} {self.op!r} ({self.annotation}) split on {split}: {self.what} is off by {self.error:.3g}"


def values(graph: Graph, module: torch.nn.Module, inputs: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Every tensor of a graph, computed operator by operator in float64 on one device.

    Args:
        graph: traced from `module`.
        module: has the parameters and buffers.
        inputs: one micro-batch.
    """
    given: dict[str, torch.Tensor] = dict(module.named_parameters(remove_duplicate=False))
    given |= dict(module.named_buffers(remove_duplicate=False))
    given |= dict(zip(graph.inputs, inputs, strict=True))
    found: dict[str, torch.Tensor] = {}
    for name, tensor in graph.tensors.items():
        if tensor.role != "activation":
            value = given[name].detach()
            found[name] = (value.double() if value.is_floating_point() else value).requires_grad_(tensor.requires_grad)
    with context(floats="fp64"):
        for op in graph.ops:
            made = find(op.target).compute(op, [found[name] for name in op.inputs], {})
            found |= dict(zip(op.outputs, made, strict=True))
    return found


def check(
    graph: Graph, module: torch.nn.Module, inputs: Sequence[torch.Tensor], *, every: bool = False
) -> list[Finding]:
    """What is wrong with the annotations of a graph's operators; nothing, if all is well.

    Args:
        graph: traced from `module`; small, since every operator is computed some dozen times.
        module: has the parameters and buffers.
        inputs: one micro-batch, with data: operators are checked on the numbers they meet there.
        every: check operators that are alike as well. Otherwise one that differs from an earlier one in its sizes alone
            is split on single identifiers, and one that does not differ (the same in another layer) not at all.
    """
    found = values(graph, module, inputs)
    seen: set[str] = set()
    findings: list[Finding] = []
    for op in graph.ops:
        alike = repr((op.target, str(op.annotation), op.annotation.sizes, sorted(op.attributes.items())))
        if alike in seen and not every:
            continue
        seen.add(alike)
        trained = [graph.tensors[name].requires_grad for name in op.inputs]
        kind = f"{op.target} {op.annotation}"
        inputs_ = [found[name].detach() for name in op.inputs]
        findings += check_op(op, inputs_, trained, pairs=every or kind not in seen)
        seen.add(kind)
    return findings


def check_op(op: Op, inputs: Sequence[torch.Tensor], trained: Sequence[bool], *, pairs: bool = True) -> list[Finding]:
    """Split one operator in every way its annotation allows.

    Args:
        op: the operator.
        inputs: its inputs, whole; floating ones in float64.
        trained: which of them have gradients.
        pairs: split it on every two identifiers at once as well.
    """
    names = op.annotation.splittable()
    whole = _computed(op, inputs, trained, {}, None)
    findings: list[Finding] = []
    for split in (*((name,) for name in names), *(itertools.combinations(names, 2) if pairs else ())):
        degrees = {name: degree(op.annotation.sizes[name]) for name in split}
        findings += _split(op, inputs, trained, degrees, whole)
    return findings


def kept(op: Op, inputs: Sequence[torch.Tensor], trained: Sequence[bool]) -> int:
    """Bytes that autograd keeps for the backward pass of one operator: what `Work.saved` and `saved_extra` should say.

    Args:
        op: the operator, done whole.
        inputs: its inputs.
        trained: which of them have gradients.
    """
    given = [one.detach().clone().requires_grad_(flag) for one, flag in zip(inputs, trained, strict=True)]
    found: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        # Several views of one memory are kept once.
        found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        find(op.target).compute(op, given, {})
    return sum(found.values())


def degree(size: int) -> int:
    """The smallest number of equal parts."""
    return next(factor for factor in range(2, size + 1) if size % factor == 0)


def _split(
    op: Op,
    inputs: Sequence[torch.Tensor],
    trained: Sequence[bool],
    degrees: Mapping[str, int],
    complete: Computed,
) -> Iterator[Finding]:
    annotation = op.annotation

    def finding(what: str, error: float) -> Finding:
        return Finding(op.name, op.target, str(annotation), tuple(degrees), what, error)

    try:
        whole, seeds, gradients = complete
        made = [torch.full_like(one, float("nan")) if one.is_floating_point() else one.clone() for one in whole]
        first = [set() for _ in whole]
        sums: list[torch.Tensor | None] = [None if one is None else torch.zeros_like(one) for one in gradients]
        for place in itertools.product(*(range(count) for count in degrees.values())):
            parts = {name: Part(index, degrees[name]) for name, index in zip(degrees, place, strict=True)}
            local = [
                _box(one, dims, annotation.sizes, parts) for one, dims in zip(inputs, annotation.inputs, strict=True)
            ]
            seed = [
                _box(one, dims, annotation.sizes, parts) for one, dims in zip(seeds, annotation.outputs, strict=True)
            ]
            outputs, _, local_gradients = _computed(op, local, trained, parts, seed)
            for number, (part, dims) in enumerate(zip(outputs, annotation.outputs, strict=True)):
                into = _box(made[number], dims, annotation.sizes, parts)
                lacked = [name for name in parts if not any(dim[:1] == (name,) for dim in dims)]
                key = tuple(parts[name].index for name in parts if name not in lacked)
                _combine(into, part, [annotation.reductions[name] for name in lacked], key in first[number])
                first[number].add(key)
            for number, (total, one) in enumerate(zip(sums, local_gradients, strict=True)):
                if total is not None and one is not None:
                    _box(total, annotation.inputs[number], annotation.sizes, parts).add_(one)
    except (RuntimeError, ValueError, IndexError, KeyError, OperatorError) as error:
        yield finding(f"{type(error).__name__}: {error}", float("inf"))
        return
    for number, (one, other) in enumerate(zip(whole, made, strict=True)):
        if (error := _difference(one, other)) > TOLERANCE:
            yield finding(f"output {number} ({op.outputs[number]})", error)
    for number, (one, other) in enumerate(zip(gradients, sums, strict=True)):
        if one is not None and other is not None and (error := _difference(one, other)) > TOLERANCE:
            yield finding(f"gradient of input {number} ({op.inputs[number]})", error)


def _computed(
    op: Op,
    inputs: Sequence[torch.Tensor],
    trained: Sequence[bool],
    parts: Mapping[str, Part],
    seeds: Sequence[torch.Tensor] | None,
) -> Computed:
    """Outputs, the gradients they are given, and the gradients of the inputs; None where there is none."""
    leaves = [one.detach().clone().requires_grad_(flag) for one, flag in zip(inputs, trained, strict=True)]
    with context(floats="fp64"):
        outputs = list(find(op.target).compute(op, leaves, parts))
    if seeds is None:
        generator = torch.Generator().manual_seed(7)
        seeds = [torch.randn(one.shape, generator=generator, dtype=torch.float64) for one in outputs]
    pairs = [(one, seed) for one, seed in zip(outputs, seeds, strict=True) if one.requires_grad]
    gradients: list[torch.Tensor | None] = [None] * len(leaves)
    asked = [number for number, one in enumerate(leaves) if one.requires_grad]
    if pairs and asked:
        made = torch.autograd.grad(
            [one for one, _ in pairs],
            [leaves[number] for number in asked],
            [seed for _, seed in pairs],
            allow_unused=True,
        )
        for number, gradient in zip(asked, made, strict=True):
            gradients[number] = torch.zeros_like(leaves[number]) if gradient is None else gradient
    return [one.detach() for one in outputs], list(seeds), gradients


def _box(
    whole: torch.Tensor, dims: tuple[Dim, ...], sizes: Mapping[str, int], parts: Mapping[str, Part]
) -> torch.Tensor:
    """The part of a tensor that has these parts of its identifiers: a view."""
    for place, dim in enumerate(dims):
        if dim and dim[0] in parts:
            if sizes[dim[0]] % parts[dim[0]].degree:
                raise ValueError(f"{dim[0]} of size {sizes[dim[0]]} does not divide into {parts[dim[0]].degree}")
            length = whole.shape[place] // parts[dim[0]].degree
            whole = whole.narrow(place, parts[dim[0]].index * length, length)
    return whole


def _combine(into: torch.Tensor, part: torch.Tensor, reductions: Sequence[str], again: bool) -> None:
    """Put a part where it belongs: combined with those before it, if there are any."""
    if part.shape != into.shape:
        raise ValueError(f"a part of shape {tuple(part.shape)} stands where {tuple(into.shape)} belongs")
    if again:
        into.copy_(torch.maximum(into, part) if "max" in reductions else into + part)
    else:
        into.copy_(part)


def _difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """Largest difference; where both are the same infinity there is none."""
    one, other = one.double(), other.double()
    apart = torch.where(one == other, torch.zeros_like(one), (one - other).abs())
    apart = torch.nan_to_num(apart, nan=float("inf"))
    finite = one[one.isfinite()]
    scale = max(1e-30, float(finite.abs().max()) if finite.numel() else 1.0)
    return float(apart.max()) / scale if apart.numel() else 0.0
