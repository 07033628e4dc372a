"""op-trans of named plans: which operators are split along the axes `data` and `tensor`, and on what."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engines.superscaler import propagation, transformation
from engines.superscaler.named.degrees import batch_inputs
from engines.superscaler.propagation import fits
from harness.api import PlanError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engines.superscaler.draft import Draft
    from engines.superscaler.graph import Graph
    from engines.superscaler.named.degrees import Degrees


def apply(draft: Draft, found: Mapping[str, str], axis: str) -> None:
    """Make splits rules of a draft."""
    by_name: dict[str, list[str]] = {}
    for op, name in found.items():
        if name:
            by_name.setdefault(name, []).append(op)
    for name, ops in by_name.items():
        transformation.partition(draft, ops, name, axis)


def data(graph: Graph, degree: int, name: str, *, experts: bool = False) -> dict[str, str]:
    """The batch divided over replicas; experts, if asked for, divided over them instead of repeated.

    Raises:
        PlanError: the batch does not divide, or the model has no experts.
    """
    if degree == 1:
        return {}
    fixed = _experts(graph, degree, name) if experts else None
    return propagation.follow(graph, fits(degree), batch_inputs(name, graph, degree), fixed)


def _experts(graph: Graph, degree: int, plan: str) -> dict[str, str]:
    """Products of one weight per expert: the weight's first dim is also one of the other factor's."""
    found: dict[str, str] = {}
    for op in graph.ops:
        dims = {
            tensor: [dim[0] for dim in op.annotation.inputs[number] if dim] for number, tensor in enumerate(op.inputs)
        }
        parameters = [t for t in op.inputs if graph.tensors[t].role == "parameter"]
        weights = [t for t in parameters if len(graph.tensors[t].shape) >= 3]
        # A convolution's bias has its weight's first dim as well: only what is not learned tells experts.
        others = {name for t, names in dims.items() if t not in parameters for name in names}
        for weight in weights:
            summed = any(name in op.annotation.reductions and name in others for name in dims[weight])
            if summed and dims[weight][0] in others:
                found[op.name] = dims[weight][0]
    if not found:
        raise PlanError(f"plan {plan!r}: the model has no experts (no operator with one weight per expert)")
    for op, name in found.items():
        size = graph.by_name[op].annotation.sizes[name]
        if size % degree:
            allowed = ", ".join(str(d) for d in range(1, size + 1) if size % d == 0)
            raise PlanError(f"plan {plan!r}: {size} experts cannot be divided over {degree} (allowed: {allowed})")
    return found


def tensor(
    graph: Graph, degree: int, name: str, others: Mapping[str, str], sizes: Degrees, *, tokens: bool
) -> dict[str, str]:
    """Megatron's rule; with `tokens`, what it leaves to all devices is divided along the sequence.

    Raises:
        PlanError: no operator can be split so, or there are no tokens to divide.
    """
    if degree == 1:
        return {}
    already = {op: {identifier: sizes.data} for op, identifier in others.items() if identifier}
    fit = fits(degree, already)
    found = propagation.megatron(graph, fit)
    if not found:
        raise PlanError(f"plan {name!r}: no operator of the model can be split {degree} ways between two others")
    if not tokens:
        return found
    whole = {op: x for op, x in found.items() if x}
    return propagation.lead(graph, fit, {**propagation.follow(graph, fit, _tokens(graph, degree, name)), **whole})


def _tokens(graph: Graph, degree: int, plan: str) -> dict[str, int]:
    """Tensors that have tokens -> along which dim: what the batch has behind its samples, or what patches are made of.

    Raises:
        PlanError: the model has no tokens, or they do not divide.
    """
    found: dict[str, int] = {}
    for tensor in graph.inputs:
        readers = [graph.by_name[op] for op in graph.consumers.get(tensor, ())]
        if len(graph.tensors[tensor].shape) in (2, 3):
            found[tensor] = 1
        elif all(op.target == "conv2d" for op in readers):
            # (batch, channels, rows, columns) of an image, and rows of patches are the tokens.
            found.update({made: 2 for op in readers for made in op.outputs})
    convolutions = {made for op in graph.ops if op.target == "conv2d" for made in op.outputs}
    if not found or convolutions - set(found):
        raise PlanError(f"plan {plan!r}: the model has no tokens that could be divided; plan 'tp' needs none")
    for tensor, dim in found.items():
        size = graph.tensors[tensor].shape[dim]
        if size % degree:
            allowed = ", ".join(str(d) for d in range(1, size + 1) if size % d == 0)
            raise PlanError(
                f"plan {plan!r}: {size} tokens (dim {dim} of {tensor!r}) cannot be divided over {degree} devices"
                f" (allowed: {allowed})"
            )
    return found
