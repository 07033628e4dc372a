"""Layers of two linear maps around a GELU, and a mean squared error."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

PRESETS: dict[str, dict[str, Any]] = {}


class Shape(NamedTuple):
    """Sizes; the defaults are the tiny preset."""

    batch: int = 8
    layers: int = 2
    hidden: int = 16
    inner: int = 24


class Layer(nn.Module):
    """x + W2 gelu(W1 x)."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.up = nn.Linear(hidden, inner)
        self.activation = nn.GELU()
        self.down = nn.Linear(inner, hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, hidden) -> (batch, hidden)."""
        return x + self.down(self.activation(self.up(x)))


class Model(nn.Module):
    """The layers and the loss."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(shape.hidden, shape.inner) for _ in range(shape.layers))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Two (batch, hidden) tensors -> the mean squared distance of the result from `y`."""
        for layer in self.layers:
            x = layer(x)
        return (x - y).square().mean()


def batch(shape: Shape, generator: torch.Generator | None) -> tuple[torch.Tensor, ...]:
    """Inputs and what they should become."""
    if generator is None:
        return tuple(torch.empty(shape.batch, shape.hidden) for _ in range(2))
    return tuple(torch.randn(shape.batch, shape.hidden, generator=generator) for _ in range(2))
