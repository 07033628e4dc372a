"""A decoder-only transformer with the norms before attention and feed-forward.

GPT-2 (Radford et al., 2019) has this form, and GPT-3 (Brown et al., 2020) these sizes.
Queries, keys and values come from one linear map whose outputs have the heads outermost, so that splitting its outputs
splits heads: a map with (query, key, value) outermost could not be split so.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional

PRESETS: dict[str, dict[str, Any]] = {
    size: {"layers": layers, "hidden": hidden, "heads": heads, "sequence": 2048, "vocabulary": 51200}
    for size, layers, hidden, heads in (
        # Brown et al., 2020, table 2.1, and the sizes between that Megatron-LM, Alpa and Aceso use.
        ("350M", 24, 1024, 16),
        ("1.3B", 24, 2048, 32),
        ("2.6B", 32, 2560, 32),
        ("6.7B", 32, 4096, 32),
        ("13B", 40, 5120, 40),
        ("175B", 96, 12288, 96),
    )
}


class Shape(NamedTuple):
    """Sizes; the defaults are the tiny preset."""

    batch: int = 8
    sequence: int = 12
    layers: int = 2
    hidden: int = 32
    heads: int = 8
    vocabulary: int = 56
    dropout: float = 0.0
    tied: bool = True
    """Whether the head has the embedding's weights."""


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, hidden: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(hidden, 3 * hidden)
        self.projection = nn.Linear(hidden, hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, sequence, hidden) -> the same."""
        batch, sequence, hidden = x.shape
        heads = self.qkv(x).view(batch, sequence, self.heads, 3 * hidden // self.heads).transpose(1, 2)
        query, key, value = heads.chunk(3, dim=-1)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.dropout(self.projection(mixed.transpose(1, 2).reshape(batch, sequence, hidden)))


class FeedForward(nn.Module):
    """Four times as wide inside."""

    def __init__(self, hidden: int, dropout: float) -> None:
        super().__init__()
        self.up = nn.Linear(hidden, 4 * hidden)
        self.activation = nn.GELU(approximate="tanh")
        self.down = nn.Linear(4 * hidden, hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, sequence, hidden) -> the same."""
        return self.dropout(self.down(self.activation(self.up(x))))


class Layer(nn.Module):
    """Attention and feed-forward, each added to what it is given."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(shape.hidden)
        self.attention = Attention(shape.hidden, shape.heads, shape.dropout)
        self.feed_forward_norm = nn.LayerNorm(shape.hidden)
        self.feed_forward = FeedForward(shape.hidden, shape.dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, sequence, hidden) -> the same."""
        x = x + self.attention(self.attention_norm(x))
        return x + self.feed_forward(self.feed_forward_norm(x))


class Model(nn.Module):
    """Embeddings, layers, head and loss."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embedding = nn.Embedding(shape.vocabulary, shape.hidden)
        self.position = nn.Embedding(shape.sequence, shape.hidden)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.hidden)
        self.head = nn.Linear(shape.hidden, shape.vocabulary, bias=False)
        if shape.tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Two (batch, sequence) tensors of token numbers -> the mean cross-entropy."""
        x = self.embedding(tokens) + self.position(torch.arange(tokens.shape[1], device=tokens.device))
        for layer in self.layers:
            x = layer(x)
        scores = self.head(self.norm(x)).float()
        # Classes second, as cross_entropy wants them, without fusing batch and sequence: both stay splittable.
        return functional.cross_entropy(scores.transpose(1, 2), targets)


def batch(shape: Shape, generator: torch.Generator | None) -> tuple[torch.Tensor, ...]:
    """Token numbers and the numbers of those that follow."""
    size = (shape.batch, shape.sequence)
    if generator is None:
        return tuple(torch.empty(size, dtype=torch.int64) for _ in range(2))
    return tuple(torch.randint(shape.vocabulary, size, generator=generator) for _ in range(2))
