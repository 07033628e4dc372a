"""The optimizers: torch's own, on each rank's parts.

Only elementwise ones, so that an update of a part is the part of the update and ZeRO may split it anyhow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor


@dataclass(frozen=True)
class Optimizer:
    """Which optimizer, and its constants (Adam: Kingma and Ba, ICLR 2015)."""

    name: Literal["sgd", "adam"] = "adam"
    learning_rate: float = 1e-3
    momentum: float = 0.0
    """Of SGD."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Of Adam."""
    epsilon: float = 1e-8
    """Of Adam. A gradient that is zero but for rounding moves a weight as far as it is large against this one."""

    def make(self, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        """Torch's optimizer over some tensors."""
        if self.name == "sgd":
            return torch.optim.SGD(parameters, lr=self.learning_rate, momentum=self.momentum)
        return torch.optim.Adam(parameters, lr=self.learning_rate, betas=self.betas, eps=self.epsilon, fused=True)

    def updates(self, parts: Sequence[str], dtype: torch.dtype, device: torch.device) -> Updates:
        """For the parts of some parameters, by name."""
        return Updates(self, {name: torch.empty(0, dtype=dtype, device=device) for name in parts})


class Updates:
    """An optimizer's state for one rank's parts of the parameters."""

    def __init__(self, optimizer: Optimizer, handles: dict[str, Tensor]) -> None:
        # Torch keeps state by the identity of a parameter, while ours is another tensor whenever it was gathered and
        # cut anew: handles stand for the parts, and are given their memory for the time of an update.
        self._handles = handles
        self._optimizer = optimizer.make(handles.values()) if handles else None

    def apply(self, parts: Sequence[tuple[str, Tensor, Tensor]]) -> None:
        """Change parts in place: (name, part, its gradient)."""
        if self._optimizer is None:
            return
        for name, part, gradient in parts:
            handle = self._handles[name]
            handle.data, handle.grad = part, gradient
        self._optimizer.step()
        for name, _, _ in parts:
            self._handles[name].grad = None

    @property
    def nbytes(self) -> int:
        """Bytes of the state's tensors, without the counts of steps."""
        if self._optimizer is None:
            return 0
        state = self._optimizer.state.values()
        tensors = (value for entry in state for value in entry.values() if isinstance(value, torch.Tensor))
        return sum(value.nbytes for value in tensors if value.dim())
