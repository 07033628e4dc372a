"""In which numbers a plan trains, where that is not what the graph was traced in.

A model is traced on a laptop in fp32 and planned for GPUs that train in fp16: tensors are then half as large, and the
optimizer keeps an fp32 copy of every parameter beside its two moments (Micikevicius et al.: Mixed Precision Training,
ICLR 2018): 2 bytes of parameter, 2 of gradient and 12 of state.
"""

from __future__ import annotations

from dataclasses import dataclass

from engines.superscaler.graph import BYTES

FLOATS = ("fp64", "fp32", "fp16", "bf16")
HALF = ("fp16", "bf16")
MASTER = 4
"""Bytes of the copy that a parameter in half precision has in the optimizer, and of each moment then."""


@dataclass(frozen=True)
class Precision:
    """What numbers take; by default those of the graph, with Adam."""

    dtype: str = ""
    """Of activations, parameters and gradients that the graph has in any floating-point dtype; empty: as traced."""
    state: int | None = None
    """Bytes of optimizer state per parameter; None: Adam's moments, and the fp32 copy of what is in half precision."""

    def __post_init__(self) -> None:
        if self.dtype and self.dtype not in FLOATS:
            raise ValueError(f"{self.dtype!r} is not a dtype to train in; expected {', '.join(FLOATS)} or nothing")

    def of(self, dtype: str) -> str:
        """What the graph's dtype becomes."""
        return self.dtype if self.dtype and dtype in FLOATS else dtype

    def nbytes(self, dtype: str) -> int:
        """Bytes of one number that the graph has in this dtype."""
        return BYTES[self.of(dtype)]

    def state_bytes(self, dtype: str) -> int:
        """Bytes of optimizer state for one number of a parameter."""
        if self.state is not None:
            return self.state
        return 3 * MASTER if self.of(dtype) in HALF else 2 * self.nbytes(dtype)

    def update_bytes(self, dtype: str) -> int:
        """Bytes that an update moves for one number: the gradient read, state and parameter read and written.

        A parameter in half precision is only written: what is read is its copy, which is part of the state.
        """
        weight = self.nbytes(dtype) * (1 if self.of(dtype) in HALF else 2)
        return self.nbytes(dtype) + 2 * self.state_bytes(dtype) + weight
