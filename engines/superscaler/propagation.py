"""Which identifier an operator takes when it goes along with what its inputs are split on.

Named plans are rules on a few operators; all others follow. Along one mesh axis every tensor is either split on one
of its dims or not at all, and an operator that reads a split tensor takes the identifier of that dim.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from engines.superscaler.graph import Graph, Op

Fits = "Callable[[Op, str], bool]"


def fits(degree: int, others: Mapping[str, Mapping[str, int]] | None = None) -> Callable[[Op, str], bool]:
    """Whether an operator can be split on an identifier into `degree` parts, on top of what `others` do.

    Args:
        degree: Of the axis.
        others: Operator -> identifier -> parts it is split into already along other axes.
    """

    def test(op: Op, name: str) -> bool:
        already = (others or {}).get(op.name, {}).get(name, 1)
        return name in op.annotation.splittable() and op.annotation.sizes[name] % (degree * already) == 0

    return test


def follow(
    graph: Graph,
    fit: Callable[[Op, str], bool],
    inputs: Mapping[str, int] | None = None,
    fixed: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Split each operator as its inputs are.

    Args:
        graph: The model.
        fit: See `fits`.
        inputs: Inputs of the batch that are split -> along which dim.
        fixed: Operators whose identifier is decided already ('' among them).

    Returns:
        Operator -> identifier, '' where nothing of what it reads is split.
    """
    split: dict[str, int] = dict(inputs or {})
    found: dict[str, str] = {}
    for op in graph.ops:
        if fixed is not None and op.name in fixed:
            name = fixed[op.name]
        else:
            name = next((name for name in wishes(op, split) if fit(op, name)), "")
        found[op.name] = name
        _mark(op, name, split)
    return found


def wishes(op: Op, split: Mapping[str, int]) -> list[str]:
    """Identifiers of the dims along which what an operator reads is split; the first input's first."""
    names: dict[str, None] = {}
    for number, tensor in enumerate(op.inputs):
        if tensor in split:
            dim = op.annotation.inputs[number][split[tensor]]
            if dim:
                names.setdefault(dim[0])
    return list(names)


def _mark(op: Op, name: str, split: dict[str, int]) -> None:
    for number, tensor in enumerate(op.outputs):
        dim = op.annotation.output_dim(number, name) if name else None
        if dim is not None:
            split[tensor] = dim


def lead(graph: Graph, fit: Callable[[Op, str], bool], found: Mapping[str, str]) -> dict[str, str]:
    """Split also what is made for readers that all split it on one dim: it is then divided earlier, not later.

    Between the sum that ends a row-parallel product and the addition after it may stand views and permutations, which
    follow nothing that is split; split like the addition, the sum is scattered at once and not made whole first.

    Args:
        graph: The model.
        fit: See `fits`.
        found: Operator -> identifier, '' where it is free.

    Returns:
        The same, with identifiers for some that were free.
    """
    result = dict(found)
    for op in reversed(graph.ops):
        if result.get(op.name) or len(op.outputs) != 1:
            continue
        wanted = {
            reader.annotation.input_dim(number, result[name]) if result.get(name) else None
            for name in graph.consumers.get(op.outputs[0], ())
            for reader in (graph.by_name[name],)
            for number, tensor in enumerate(reader.inputs)
            if tensor == op.outputs[0]
        }
        dim = wanted.pop() if len(wanted) == 1 else None
        if dim is not None and op.annotation.outputs[0][dim] and fit(op, op.annotation.outputs[0][dim][0]):
            result[op.name] = op.annotation.outputs[0][dim][0]
    return result


def megatron(
    graph: Graph, fit: Callable[[Op, str], bool], among: Sequence[str] | None = None, *, lookups: bool = True
) -> dict[str, str]:
    """Tensor parallelism by Megatron-LM's rule (Shoeybi et al., 2019, section 3), for any model.

    A product with a weight starts a split on an output feature (column-parallel) if all that reads it can go along up
    to sums over that feature (row-parallel), so that there is no communication between the two. Tables are split on
    their rows. Everything else is done by every device.

    Args:
        graph: The model.
        fit: See `fits`.
        among: Operators that may be split; all by default.
        lookups: Whether look-ups are split on the rows of their table.
    """
    place = {op.name: number for number, op in enumerate(graph.ops)}
    allowed = None if among is None else frozenset(among)
    found: dict[str, str] = {}
    split: dict[str, int] = {}
    for op in graph.ops:
        if op.name in found:
            _mark(op, found[op.name], split)
            continue
        if allowed is not None and op.name not in allowed:
            continue
        for name in _starts(graph, op, lookups=lookups):
            region = _region(graph, op, name, fit, found, allowed, place) if fit(op, name) else None
            if region is not None:
                found.update(region)
                _mark(op, name, split)
                break
    return found


def _starts(graph: Graph, op: Op, *, lookups: bool) -> list[str]:
    """Identifiers of a weight alone: features of the output, or (of a table) rows."""
    weights = [n for n, tensor in enumerate(op.inputs) if graph.tensors[tensor].role == "parameter"]
    others = {
        name
        for number, tensor in enumerate(op.inputs)
        if graph.tensors[tensor].role != "parameter"
        for dim in op.annotation.inputs[number]
        for name in dim
    }
    if not weights or len(weights) == len(op.inputs) or len(op.annotation.inputs[weights[0]]) < 2:
        return []
    own = [dim[0] for dim in op.annotation.inputs[weights[0]] if dim and dim[0] not in others]
    made = {name for tensor in op.annotation.outputs for dim in tensor for name in dim}
    rows = [name for name in own if name not in made]
    return (rows if lookups else []) or [name for name in own if name in made and not rows]


def _region(
    graph: Graph,
    start: Op,
    name: str,
    fit: Callable[[Op, str], bool],
    found: Mapping[str, str],
    allowed: frozenset[str] | None,
    place: Mapping[str, int],
) -> dict[str, str] | None:
    """Operators from a start to the sums that end it, with their identifiers; None if one of them cannot go along."""
    region = {start.name: name}
    split: dict[str, int] = {}
    _mark(start, name, split)
    pending = sorted(
        {reader for t in start.outputs if t in split for reader in graph.consumers.get(t, ())}, key=place.get
    )
    if any(graph.loss == tensor for tensor in split):
        return None
    while pending:
        op = graph.by_name[pending.pop(0)]
        if op.name in region:
            continue
        names = wishes(op, split)
        if len(names) != 1 or not fit(op, names[0]) or (allowed is not None and op.name not in allowed):
            return None
        if found.get(op.name, names[0]) != names[0]:
            return None
        # A dim of size one in another tensor hides no second split; two tensors split on different dims do.
        region[op.name] = names[0]
        before = set(split)
        _mark(op, names[0], split)
        for tensor in op.outputs:
            if tensor in split and tensor not in before:
                if tensor == graph.loss:
                    return None
                pending += graph.consumers.get(tensor, ())
        pending = sorted(set(pending), key=place.get)
    return region
