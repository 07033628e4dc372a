"""What follows from a graph alone: where the batch is, which operators are views, and into which units it falls.

A *unit* is a piece of the model that is cut, recomputed and repeated as a whole: a layer of a transformer, what comes
before the first one, what comes after the last one.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engines.superscaler.graph import Graph, Op

SMALLEST = 6
"""Operators that a numbered module has on average to count as a layer; an element of a Sequential has one or two."""


@dataclass(frozen=True)
class Unit:
    """Consecutive operators of one layer, or of what lies between layers."""

    name: str
    """Of the module; empty where it has none."""
    ops: tuple[str, ...]
    is_layer: bool


def batch(graph: Graph) -> Mapping[str, str]:
    """Operator -> the identifier of the batch, the first dim of what the model is given; '' where it has none."""
    place: dict[str, int] = {name: 0 for name in graph.inputs if graph.tensors[name].shape}
    found: dict[str, str] = {}
    for op in graph.ops:
        note, name = op.annotation, ""
        for number, tensor in enumerate(op.inputs):
            dims = note.inputs[number]
            if tensor in place and place[tensor] < len(dims) and dims[place[tensor]]:
                name = dims[place[tensor]][0]
                break
        found[op.name] = name if name in note.splittable() else ""
        if name:
            for number, tensor in enumerate(op.outputs):
                dim = note.output_dim(number, name)
                if dim is not None:
                    place[tensor] = dim
    return found


def units(graph: Graph) -> tuple[Unit, ...]:
    """The graph's operators, in order, as units.

    The same module applied twice is two units. Operators outside of layers that use no parameter belong to what comes
    before them.
    """
    depth = _depth(graph)
    weights = set(graph.parameters)
    runs: list[tuple[str, list[Op]]] = []
    for key, group in groupby(graph.ops, key=lambda op: _numbered(op.module, depth)):
        ops = list(group)
        heavy = any(name in weights for op in ops for name in op.inputs)
        if runs and (key == runs[-1][0] or (not key and not (heavy and runs[-1][0]))):
            runs[-1][1].extend(ops)
        elif runs and key and len(runs) > 1 and key == runs[-2][0] and not runs[-1][0]:
            last = runs.pop()[1]
            runs[-1][1].extend([*last, *ops])
        else:
            runs.append((key, ops))
    return tuple(Unit(key, tuple(op.name for op in ops), bool(key)) for key, ops in runs)


def _numbered(module: str, depth: int) -> str:
    """The module's name up to its `depth`-th number; empty if it has fewer."""
    parts, seen = module.split("."), 0
    for place, part in enumerate(parts):
        seen += part.isdigit()
        if part.isdigit() and seen == depth:
            return ".".join(parts[: place + 1])
    return ""


def _depth(graph: Graph) -> int:
    """How many numbers the name of a layer has: as many as possible while layers are not tiny."""
    best, depth = 1, 1
    while True:
        names = [name for op in graph.ops if (name := _numbered(op.module, depth))]
        if not names or len(names) < SMALLEST * len(set(names)) or 2 * len(names) < len(graph.ops) * (depth > 1):
            return best
        best, depth = depth, depth + 1
