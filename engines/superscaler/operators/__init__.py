"""The operator table: for every operator its annotation, how a part of it is computed, and what that costs.

`find` is all that the rest of the engine asks for. Importing this package does not import torch: planning needs
annotations and costs alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from engines.superscaler.operators.context import Context, context, current
from engines.superscaler.operators.cost import Sizes, Work
from engines.superscaler.operators.table import (
    Call,
    Definition,
    Local,
    OperatorError,
    called,
    find,
    register,
    targets,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from engines.superscaler.graph import Op, Tensor


__all__ = [
    "Call",
    "Context",
    "Definition",
    "Local",
    "Operator",
    "OperatorError",
    "Part",
    "Sizes",
    "Work",
    "called",
    "context",
    "current",
    "find",
    "register",
    "targets",
]


class Part(NamedTuple):
    """Which part of a split operator: the index-th of `degree` along one identifier."""

    index: int
    degree: int


class Operator(Protocol):
    """An entry of the table."""

    target: str

    def compute(self, op: Op, inputs: Sequence[torch.Tensor], parts: Mapping[str, Part]) -> tuple[torch.Tensor, ...]:
        """The outputs of one part, from its parts of the inputs; differentiable.

        `parts` has the identifiers that are split. Sizes in `op.attributes` are those of the whole.
        """

    def work(self, op: Op, tensors: Mapping[str, Tensor], degrees: Mapping[str, int]) -> Work:
        """Cost of one part when identifiers are split into so many parts."""
