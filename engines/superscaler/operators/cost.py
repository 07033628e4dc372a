"""What a part of an operator costs, before any hardware is known: operations, bytes, and what autograd keeps.

Conventions are those of `emulation.calibrate.operators`, so that a calibrated profile's families apply.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from engines.superscaler.graph import BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from engines.superscaler.annotation import Dim
    from engines.superscaler.graph import Op, Tensor


@dataclass(frozen=True)
class Work:
    """What one part of an operator costs, before any hardware is known."""

    flops: float
    """Operations of the forward pass."""
    nbytes: int
    """Bytes that the forward pass reads and writes, each tensor once."""
    backward_flops: float
    backward_nbytes: int
    saved: tuple[str, ...]
    """Tensors of the operator (inputs and outputs) that autograd keeps for the backward pass."""
    saved_extra: int = 0
    """Bytes kept beside those: masks, statistics, attention probabilities."""
    workspace: int = 0
    """Bytes of temporaries that exist only while it runs."""
    family: str = "elementwise"
    """Of the profile's efficiency curves: `matmul`, `attention`, `normalization`, `softmax`, `elementwise`, ..."""
    shape: tuple[int, ...] = ()
    """(m, n, k) of a matrix product; empty otherwise."""


@dataclass(frozen=True)
class Sizes:
    """The sizes of one part of an operator, for functions that cost it."""

    op: Op
    tensors: Mapping[str, Tensor]
    degrees: Mapping[str, int]

    def length(self, name: str) -> int:
        """Of an identifier, in one part."""
        return self.op.annotation.sizes[name] // self.degrees.get(name, 1)

    def input(self, number: int) -> int:
        """Elements of one part of an input."""
        return self._elements(self.op.annotation.inputs[number])

    def output(self, number: int = 0) -> int:
        """Elements of one part of an output."""
        return self._elements(self.op.annotation.outputs[number])

    def _elements(self, dims: tuple[Dim, ...]) -> int:
        return math.prod(self.length(name) for dim in dims for name in dim)

    def input_bytes(self, number: int) -> int:
        """Bytes of one part of an input."""
        return self.input(number) * BYTES[self.tensors[self.op.inputs[number]].dtype]

    def output_bytes(self, number: int = 0) -> int:
        """Bytes of one part of an output."""
        return self.output(number) * BYTES[self.tensors[self.op.outputs[number]].dtype]

    def needs(self, number: int) -> bool:
        """Whether the backward pass makes a gradient of an input."""
        return self.backward and self.tensors[self.op.inputs[number]].requires_grad

    @cached_property
    def backward(self) -> bool:
        """Whether it has a backward pass."""
        return any(self.tensors[name].requires_grad for name in self.op.outputs)

    @cached_property
    def forward_bytes(self) -> int:
        """All that it reads and writes, each tensor once."""
        inputs = {name: self.input_bytes(number) for number, name in enumerate(self.op.inputs)}
        return sum(inputs.values()) + sum(self.output_bytes(number) for number in range(len(self.op.outputs)))

    def work(
        self,
        *,
        inputs: Iterable[int] = (),
        outputs: Iterable[int] = (),
        family: str = "elementwise",
        flops: float = 0.0,
        backward_flops: float = 0.0,
        nbytes: int | None = None,
        backward_nbytes: int | None = None,
        extra: int = 0,
        workspace: int = 0,
        shape: tuple[int, ...] = (),
    ) -> Work:
        """Fill in what follows from the rest.

        Args:
            inputs: which inputs autograd keeps.
            outputs: which outputs it keeps.
            family: of the profile's curves.
            flops: of the forward pass.
            backward_flops: of the backward pass.
            nbytes: read and written forward; by default every tensor once.
            backward_nbytes: by default gradients of outputs and what was kept are read, gradients of inputs written.
            extra: bytes kept beside inputs and outputs.
            workspace: bytes of temporaries.
            shape: (m, n, k) of a matrix product.
        """
        forward = self.forward_bytes if nbytes is None else nbytes
        if not self.backward:
            return Work(flops, forward, 0.0, 0, (), 0, workspace, family, shape)
        kept = {self.op.inputs[number]: self.input_bytes(number) for number in inputs}
        kept |= {self.op.outputs[number]: self.output_bytes(number) for number in outputs}
        if backward_nbytes is None:
            read = sum(self.output_bytes(number) for number in range(len(self.op.outputs))) + sum(kept.values()) + extra
            written = sum(self.input_bytes(number) for number in range(len(self.op.inputs)) if self.needs(number))
            backward_nbytes = read + written
        return Work(flops, forward, backward_flops, backward_nbytes, tuple(kept), extra, workspace, family, shape)


def plain(sizes: Sizes) -> Work:
    """Reads and writes everything once; autograd keeps the inputs that are differentiated or multiply one that is."""
    return sizes.work(inputs=range(len(sizes.op.inputs)), flops=float(sizes.output()))


def free(sizes: Sizes) -> Work:
    """A view: no memory is touched."""
    return sizes.work(nbytes=0, backward_nbytes=0, family="layout")


def passing(sizes: Sizes) -> Work:
    """Linear in its inputs with coefficient one: gradients pass through and nothing is kept."""
    return sizes.work(flops=float(sizes.output()), backward_nbytes=0)
