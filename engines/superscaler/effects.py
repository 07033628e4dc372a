"""What an action reads and what it writes: all that happens to a program's values.

Freeing, verifying and counting memory ask the same question, so it is answered once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from engines.superscaler.program import (
    LASTING,
    Accumulate,
    Add,
    Buffer,
    Compute,
    Free,
    Load,
    Move,
    Seed,
    Transfer,
    Update,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engines.superscaler.graph import Graph
    from engines.superscaler.program import Action, Run

CONSTANT = ("parameter", "buffer")
"""Roles of tensors that are the same for every micro-batch."""


class Effects(NamedTuple):
    """Buffers that an action reads, and those that it makes (or makes anew)."""

    reads: tuple[Buffer, ...]
    writes: tuple[Buffer, ...]


def value(graph: Graph, tensor: str, variant: str, micro_batch: int) -> Buffer:
    """Where a run finds a tensor that it reads, or puts one that it makes."""
    role = graph.tensors[tensor].role
    return Buffer(tensor, "value", variant, LASTING if role in CONSTANT else micro_batch)


def effects(action: Action, graph: Graph, runs: Sequence[Run]) -> Effects:
    """What an action reads and writes; `runs` are the program's, by number.

    `Accumulate` and `Update` also read what they write (the first `Accumulate` of a step starts its target), and
    `Free` ends what it names: it neither reads nor writes.
    """
    match action:
        case Compute():
            return _of_compute(action, graph, runs[action.run])
        case Move() | Transfer():
            return Effects((action.source,), (action.target,))
        case Load() | Seed():
            return Effects((), (action.target,))
        case Add():
            return Effects(action.sources, (action.target,))
        case Accumulate():
            return Effects((action.source,), (action.target,))
        case Update():
            return Effects((action.weight, action.gradient), (action.weight,))
        case Free():
            return Effects((), ())


def _of_compute(action: Compute, graph: Graph, run: Run) -> Effects:
    m = action.micro_batch
    inputs = tuple(value(graph, tensor, variant, m) for tensor, variant, _ in run.inputs)
    if action.what == "forward":
        return Effects(inputs, tuple(value(graph, tensor, variant, m) for tensor, variant, _ in run.outputs))
    reads = () if action.what == "weights" else tuple(Buffer(t, "gradient", "", m) for t in run.gradient_outputs)
    # Weights are not kept with what a forward pass saves: ZeRO-3 frees them in between.
    again = (
        inputs if run.mesh.sequential > 1 else tuple(b for b in inputs if graph.tensors[b.tensor].role == "parameter")
    )
    yields = {
        "backward": ("parameter", "activation", "input", "buffer"),
        "inputs": ("activation", "input", "buffer"),
        "weights": ("parameter",),
    }[action.what]
    writes = tuple(Buffer(t, "gradient", v, m) for t, v, _ in run.gradients if graph.tensors[t].role in yields)
    return Effects((*reads, *again), writes)
