"""What the model on one device computes, as contents: the measure of everything that ranks hold.

Only the graph and the annotations of its operators are used here, nothing that a plan or phase 3 says.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from engines.superscaler.program import LASTING
from engines.superscaler.verify.values import Content, Term, extent, given, seed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engines.superscaler.graph import Graph, Op
    from engines.superscaler.layout import Box

    Summed = tuple[tuple[str, ...], Box]


class Truth:
    """Of one graph."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._values: dict[tuple[str, int, int], Content] = {}
        self._gradients: dict[tuple[str, tuple[int, ...]], Content] = {}
        self._summed: dict[tuple[str, int, str], Summed] = {}

    @cached_property
    def live(self) -> frozenset[str]:
        """Tensors whose gradient is of use: the loss depends on them through operators that are differentiated."""
        found = {self.graph.loss}
        for op in reversed(self.graph.ops):
            if any(self._differentiated(tensor) and tensor in found for tensor in op.outputs):
                found.update(tensor for tensor in op.inputs if self._differentiated(tensor))
        return frozenset(found)

    @cached_property
    def reaching(self) -> frozenset[str]:
        """Operators that the loss depends on at all."""
        wanted, found = {self.graph.loss}, set()
        for op in reversed(self.graph.ops):
            if not wanted.isdisjoint(op.outputs):
                found.add(op.name)
                wanted.update(op.inputs)
        return frozenset(found)

    @cached_property
    def contributions(self) -> dict[str, tuple[tuple[str, int], ...]]:
        """Who contributes to a tensor's gradient: (operator, number of its input), in graph order."""
        found: dict[str, list[tuple[str, int]]] = {}
        for op in self.graph.ops:
            if self.yields_gradients(op):
                for slot, tensor in enumerate(op.inputs):
                    if tensor in self.live:
                        found.setdefault(tensor, []).append((op.name, slot))
        return {tensor: tuple(pairs) for tensor, pairs in found.items()}

    @cached_property
    def trained(self) -> tuple[str, ...]:
        """Weights that the optimizer changes."""
        return tuple(sorted(name for name in self.graph.parameters if name in self.contributions))

    def yields_gradients(self, op: Op) -> bool:
        """Whether the backward pass goes through an operator."""
        return any(tensor in self.live and self._differentiated(tensor) for tensor in op.outputs)

    def value(self, tensor: str, micro_batch: int, updates: int = 0) -> Content:
        """The content of a whole tensor."""
        key = (tensor, micro_batch, updates)
        if key not in self._values:
            self._values[key] = self._value(*key)
        return self._values[key]

    def gradient(self, tensor: str, micro_batches: tuple[int, ...]) -> Content:
        """The content of its whole gradient: what every reader contributes in every micro-batch."""
        key = (tensor, micro_batches)
        if key not in self._gradients:
            self._gradients[key] = self._gradient(*key)
        return self._gradients[key]

    def summed_of_output(self, op: Op, slot: int) -> tuple[tuple[str, ...], Box]:
        """The identifiers that an output is a sum over, and their ranges."""
        return self._lacking(op, op.annotation.outputs, slot, "output")

    def summed_of_gradient(self, op: Op, slot: int) -> tuple[tuple[str, ...], Box]:
        """The identifiers that the gradient of an input is a sum over, and their ranges."""
        return self._lacking(op, op.annotation.inputs, slot, "input")

    def _differentiated(self, tensor: str) -> bool:
        return self.graph.tensors[tensor].requires_grad

    def _value(self, tensor: str, micro_batch: int, updates: int) -> Content:
        maker = self.graph.producer.get(tensor)
        if maker is None:
            lasting = self.graph.tensors[tensor].role in ("parameter", "buffer")
            return given(LASTING, updates) if lasting else given(micro_batch)
        op = self.graph.by_name[maker]
        slot = op.outputs.index(tensor)
        _, domain = self.summed_of_output(op, slot)
        return (Term(micro_batch, maker, slot, domain, (domain,)),)

    def _gradient(self, tensor: str, micro_batches: tuple[int, ...]) -> Content:
        found: list[Term] = []
        for micro_batch in micro_batches:
            if tensor == self.graph.loss:
                found.extend(seed(micro_batch))
            for name, slot in self.contributions.get(tensor, ()):
                _, domain = self.summed_of_gradient(self.graph.by_name[name], slot)
                found.append(Term(micro_batch, name, slot, domain, (domain,)))
        return tuple(sorted(found))

    def _lacking(self, op: Op, tensors: Sequence[Sequence[tuple[str, ...]]], slot: int, side: str) -> Summed:
        key = (op.name, slot, side)
        if key not in self._summed:
            has = {name for dim in tensors[slot] for name in dim}
            names = tuple(sorted(set(op.annotation.sizes) - has))
            self._summed[key] = names, extent([op.annotation.sizes[name] for name in names])
        return self._summed[key]
