"""How large what a program names is: buffers, messages, parts of tensors.

A program says the same things for every micro-batch. So all of this is computed once for each tensor, kind and variant
of a buffer, and once for each pair of layouts.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from engines.superscaler import redistribution
from engines.superscaler.program import LASTING, Accumulate, Add, Buffer, Compute, Load, Move, Seed, Transfer

if TYPE_CHECKING:
    from engines.superscaler.layout import Layout
    from engines.superscaler.precision import Precision
    from engines.superscaler.program import Action, Program

Name = tuple[str, str, str, bool]
"""A buffer without its micro-batch: tensor, kind, variant, whether it lasts."""


class Sizes:
    """Sizes of a program's buffers, on each device that holds them.

    Args:
        program: that names them.
        precision: in which numbers.
    """

    def __init__(self, program: Program, precision: Precision) -> None:
        self._graph = program.graph
        self._runs = {run.number: run for run in program.runs}
        self._precision = precision
        self._known: dict[Name, int] = {}
        self._numbers: dict[tuple[int, tuple[int, ...]], int] = {}
        self._messages: dict[tuple[int, int, tuple[int, ...]], dict[tuple[int, int], int]] = {}
        self._passes: set[tuple[int, str]] = set()
        self._kept: list[Layout] = []
        """Layouts whose identity is a key, so that they stay."""
        for tensor, layout in program.weights.items():
            self._set(Buffer(tensor, "value"), layout)

    def numbers(self, layout: Layout, shape: tuple[int, ...]) -> int:
        """How many numbers of a tensor of `shape` a device holds, all its sequential parts together."""
        key = (id(layout), shape)
        if key not in self._numbers:
            self._kept.append(layout)
            self._numbers[key] = math.prod(layout.joined().local_shape(shape))
        return self._numbers[key]

    def nbytes(self, buffer: Buffer) -> int:
        """Bytes of a buffer on each device that has it; some action that was learnt must have written it."""
        return self._known[_name(buffer)]

    def learn(self, action: Action) -> None:
        """Remember the sizes of what an action writes."""
        match action:
            case Compute():
                self._learn_pass(action)
            case Move() | Transfer():
                self._set(action.target, action.after)
            case Load():
                self._set(action.target, action.layout)
            case Add():
                self._same(action.sources[0], action.target)
            case Accumulate():
                self._same(action.source, action.target)
            case Seed():
                tensor = self._graph.tensors[action.target.tensor]
                self._known[_name(action.target)] = tensor.elements * self._precision.nbytes(tensor.dtype)
            case _:
                pass

    def messages(self, action: Move | Transfer) -> dict[tuple[int, int], int]:
        """(from, to) -> numbers, of an exchange or a transfer; without what stays where it is."""
        key = (id(action.before), id(action.after), action.shape)
        if key not in self._messages:
            self._kept += [action.before, action.after]
            found: dict[tuple[int, int], int] = {}
            for piece in redistribution.pieces(action.before, action.after, action.shape):
                if piece.source != piece.target:
                    ends = (piece.source, piece.target)
                    found[ends] = found.get(ends, 0) + piece.elements
            self._messages[key] = found
        return self._messages[key]

    def _learn_pass(self, action: Compute) -> None:
        key = (action.run, action.what)
        if key in self._passes:
            return
        self._passes.add(key)
        run = self._runs[action.run]
        kind, written = ("value", run.outputs) if action.what == "forward" else ("gradient", run.gradients)
        for tensor, variant, layout in written:
            self._set(Buffer(tensor, kind, variant, action.micro_batch), layout)  # type: ignore[arg-type]

    def _set(self, buffer: Buffer, layout: Layout) -> None:
        name = _name(buffer)
        if name not in self._known:
            tensor = self._graph.tensors[buffer.tensor]
            self._known[name] = self.numbers(layout, tensor.shape) * self._precision.nbytes(tensor.dtype)

    def _same(self, source: Buffer, target: Buffer) -> None:
        name = _name(target)
        if name not in self._known:
            self._known[name] = self._known[_name(source)]


def _name(buffer: Buffer) -> Name:
    return (buffer.tensor, buffer.kind, buffer.variant, buffer.micro_batch == LASTING)
