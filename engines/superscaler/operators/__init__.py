"""The operator table: for every operator its annotation, how a part of it is computed, and what that costs.

`find` is all that the rest of the engine asks for. Importing this package does not import torch: planning needs
annotations and costs alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from engines.superscaler.graph import Op, Tensor


class Part(NamedTuple):
    """Which part of a split operator: the index-th of `degree` along one identifier."""

    index: int
    degree: int


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


class Operator(Protocol):
    """An entry of the table."""

    target: str

    def compute(self, op: Op, inputs: Sequence[torch.Tensor], parts: Mapping[str, Part]) -> tuple[torch.Tensor, ...]:
        """The outputs of one part, from its parts of the inputs; differentiable.

        `parts` has the identifiers that are split. Sizes in `op.attributes` are those of the whole.
        """

    def work(self, op: Op, tensors: Mapping[str, Tensor], degrees: Mapping[str, int]) -> Work:
        """Cost of one part when identifiers are split into so many parts."""
