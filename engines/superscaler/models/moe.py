"""A GPT whose feed-forwards are mixtures of experts (GShard: Lepikhin et al., ICLR 2021, algorithm 1).

Tokens are dispatched to experts, and back, by products with one-hot codes.
Dispatch is dense, so shapes do not depend on where tokens go, and experts are a dim like any other: splitting it is
expert parallelism.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional

from engines.superscaler.models import gpt

PRESETS: dict[str, dict[str, Any]] = {}


class Shape(NamedTuple):
    """Sizes; the defaults are the tiny preset."""

    batch: int = 8
    sequence: int = 12
    layers: int = 2
    hidden: int = 32
    heads: int = 8
    inner: int = 20
    experts: int = 8
    choices: int = 2
    """Experts that each token goes to."""
    capacity: int = 6
    """Tokens of a sequence that an expert takes; more are dropped."""
    vocabulary: int = 56


class Experts(nn.Module):
    """Gate, dispatch, experts, combination."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.experts, self.choices, self.capacity = shape.experts, shape.choices, shape.capacity
        self.gate = nn.Linear(shape.hidden, shape.experts, bias=False)
        self.up = nn.Parameter(torch.randn(shape.experts, shape.hidden, shape.inner) * shape.hidden**-0.5)
        self.down = nn.Parameter(torch.randn(shape.experts, shape.inner, shape.hidden) * shape.inner**-0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, sequence, hidden) -> the same."""
        batch, sequence, _ = x.shape
        weight, chosen = self.gate(x).softmax(-1).topk(self.choices, dim=-1)
        weight = weight / weight.sum(-1, keepdim=True)
        codes = functional.one_hot(chosen, self.experts)
        # Place of every (token, choice) in the queue of its expert; those behind the capacity have none.
        queue = codes.view(batch, sequence * self.choices, self.experts).cumsum(1) * codes.flatten(1, 2)
        slots = torch.arange(1, self.capacity + 1, device=x.device)
        taken = (queue.unsqueeze(-1) == slots).view(batch, sequence, self.choices, self.experts, self.capacity)
        taken = taken.to(x.dtype)
        given = torch.einsum("bskec,bsd->becd", taken, x)
        made = torch.einsum(
            "becf,efd->becd", functional.gelu(torch.einsum("becd,edf->becf", given, self.up)), self.down
        )
        return torch.einsum("bsec,becd->bsd", torch.einsum("bskec,bsk->bsec", taken, weight), made)


class Layer(nn.Module):
    """Attention and experts, each added to what it is given."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(shape.hidden)
        self.attention = gpt.Attention(shape.hidden, shape.heads, 0.0)
        self.experts_norm = nn.LayerNorm(shape.hidden)
        self.experts = Experts(shape)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, sequence, hidden) -> the same."""
        x = x + self.attention(self.attention_norm(x))
        return x + self.experts(self.experts_norm(x))


class Model(nn.Module):
    """Embeddings, layers, head and loss."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embedding = nn.Embedding(shape.vocabulary, shape.hidden)
        self.position = nn.Embedding(shape.sequence, shape.hidden)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.hidden)
        self.head = nn.Linear(shape.hidden, shape.vocabulary, bias=False)

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Two (batch, sequence) tensors of token numbers -> the mean cross-entropy."""
        x = self.embedding(tokens) + self.position(torch.arange(tokens.shape[1], device=tokens.device))
        for layer in self.layers:
            x = layer(x)
        scores = self.head(self.norm(x)).float()
        return functional.cross_entropy(scores.transpose(1, 2), targets)


def batch(shape: Shape, generator: torch.Generator | None) -> tuple[torch.Tensor, ...]:
    """Token numbers and the numbers of those that follow."""
    size = (shape.batch, shape.sequence)
    if generator is None:
        return tuple(torch.empty(size, dtype=torch.int64) for _ in range(2))
    return tuple(torch.randint(shape.vocabulary, size, generator=generator) for _ in range(2))
