"""T5: an encoder and a decoder with relative position biases and root-mean-square norms (Raffel et al., 2020)."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional

PRESETS: dict[str, dict[str, Any]] = {
    # The artifact of OSDI 2024: layers, hidden, heads and thousands of words, for 4, 8, 16 and 32 devices.
    f"{layers}x{hidden}": {
        "batch": 1,
        "sequence": 1024,
        "target_sequence": 1024,
        "layers": layers,
        "hidden": hidden,
        "inner": 4 * hidden,
        "heads": heads,
        "vocabulary": thousands * 1000,
        "buckets": 32,
    }
    for layers, hidden, heads, thousands in (
        (24, 2048, 32, 512),
        (32, 3072, 48, 1024),
        (32, 4096, 64, 1536),
        (32, 6144, 96, 2048),
    )
}


class Shape(NamedTuple):
    """Sizes; the defaults are the tiny preset."""

    batch: int = 8
    sequence: int = 12
    target_sequence: int = 10
    layers: int = 2
    """Of encoder and decoder together, half of them each."""
    hidden: int = 32
    inner: int = 40
    heads: int = 8
    vocabulary: int = 56
    buckets: int = 6
    gated: bool = False
    """Whether the feed-forward has a gate (T5 1.1), or is a ReLU between two maps."""
    tied: bool = True
    """Whether encoder, decoder and head have one table of words; the head has its own otherwise."""
    dropout: float = 0.0


def buckets(queries: int, keys: int, count: int, *, both: bool) -> torch.Tensor:
    """Number of the bucket of every distance: exact for near ones, logarithmic for those up to 128 away.

    Args:
        queries: how many rows.
        keys: how many columns.
        count: of buckets.
        both: whether keys behind the query have buckets of their own.
    """
    distance = torch.arange(keys)[None, :] - torch.arange(queries)[:, None]
    half = count // 2 if both else count
    offset = (distance > 0).long() * half if both else torch.zeros_like(distance)
    distance = distance.abs() if both else (-distance).clamp(min=0)
    exact = half // 2
    far = torch.log(distance.float().clamp(min=1) / exact) / math.log(128 / exact) * (half - exact)
    return offset + torch.where(distance < exact, distance, (exact + far.long()).clamp(max=half - 1))


class PositionBias(nn.Module):
    """A number for every head and distance, the same in all layers."""

    index: torch.Tensor

    def __init__(self, queries: int, keys: int, count: int, heads: int, *, both: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(count, heads)
        self.register_buffer("index", buckets(queries, keys, count, both=both))

    def forward(self) -> torch.Tensor:
        """-> (heads, queries, keys)."""
        return self.table(self.index).permute(2, 0, 1)


class Attention(nn.Module):
    """Of one sequence to itself or to another; T5 does not scale scores."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(hidden, hidden, bias=False)
        self.key = nn.Linear(hidden, hidden, bias=False)
        self.value = nn.Linear(hidden, hidden, bias=False)
        self.projection = nn.Linear(hidden, hidden, bias=False)

    def forward(
        self, x: torch.Tensor, memory: torch.Tensor, bias: torch.Tensor | None, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """(batch, queries, hidden), (batch, keys, hidden) -> (batch, queries, hidden)."""
        query, key, value = self._heads(self.query(x)), self._heads(self.key(memory)), self._heads(self.value(memory))
        scores = query @ key.transpose(2, 3)
        if bias is not None:
            scores = scores + bias
        if mask is not None:
            scores = scores.masked_fill(mask, float("-inf"))
        return self.projection((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)


class FeedForward(nn.Module):
    """ReLU, or GELU with a gate."""

    def __init__(self, hidden: int, inner: int, *, gated: bool) -> None:
        super().__init__()
        self.up = nn.Linear(hidden, inner, bias=False)
        self.gate = nn.Linear(hidden, inner, bias=False) if gated else None
        self.down = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, sequence, hidden) -> the same."""
        if self.gate is None:
            return self.down(functional.relu(self.up(x)))
        return self.down(functional.gelu(self.gate(x), approximate="tanh") * self.up(x))


class Layer(nn.Module):
    """Self-attention, attention to the encoder (in the decoder), feed-forward."""

    def __init__(self, shape: Shape, *, decoder: bool) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(shape.hidden, eps=1e-6)
        self.attention = Attention(shape.hidden, shape.heads)
        self.cross_norm = nn.RMSNorm(shape.hidden, eps=1e-6) if decoder else None
        self.cross = Attention(shape.hidden, shape.heads) if decoder else None
        self.feed_forward_norm = nn.RMSNorm(shape.hidden, eps=1e-6)
        self.feed_forward = FeedForward(shape.hidden, shape.inner, gated=shape.gated)
        self.dropout = nn.Dropout(shape.dropout)

    def forward(
        self, x: torch.Tensor, bias: torch.Tensor, mask: torch.Tensor | None, memory: torch.Tensor | None
    ) -> torch.Tensor:
        """(batch, sequence, hidden) -> the same."""
        normed = self.attention_norm(x)
        x = x + self.dropout(self.attention(normed, normed, bias, mask))
        if self.cross is not None and self.cross_norm is not None and memory is not None:
            x = x + self.dropout(self.cross(self.cross_norm(x), memory, None, None))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))


class Model(nn.Module):
    """Encoder, decoder, head and loss."""

    mask: torch.Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        half = shape.layers // 2
        self.embedding = nn.Embedding(shape.vocabulary, shape.hidden)
        self.encoder_bias = PositionBias(shape.sequence, shape.sequence, shape.buckets, shape.heads, both=True)
        self.encoder = nn.ModuleList(Layer(shape, decoder=False) for _ in range(half))
        self.encoder_norm = nn.RMSNorm(shape.hidden, eps=1e-6)
        length = shape.target_sequence
        self.decoder_bias = PositionBias(length, length, shape.buckets, shape.heads, both=False)
        self.decoder = nn.ModuleList(Layer(shape, decoder=True) for _ in range(shape.layers - half))
        self.decoder_norm = nn.RMSNorm(shape.hidden, eps=1e-6)
        self.register_buffer("mask", torch.ones(length, length, dtype=torch.bool).triu(1))
        self.head = nn.Linear(shape.hidden, shape.vocabulary, bias=False)
        if shape.tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor, given: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Words in (batch, sequence), words before and words to come out (batch, target_sequence) -> mean loss."""
        memory, bias = self.embedding(tokens), self.encoder_bias()
        for layer in self.encoder:
            memory = layer(memory, bias, None, None)
        memory = self.encoder_norm(memory)
        x, bias = self.embedding(given), self.decoder_bias()
        for layer in self.decoder:
            x = layer(x, bias, self.mask, memory)
        scores = self.head(self.decoder_norm(x)).float()
        return functional.cross_entropy(scores.transpose(1, 2), targets)


def batch(shape: Shape, generator: torch.Generator | None) -> tuple[torch.Tensor, ...]:
    """Words for the encoder, words for the decoder, and the words that follow those."""
    sizes = [(shape.batch, length) for length in (shape.sequence, shape.target_sequence, shape.target_sequence)]
    if generator is None:
        return tuple(torch.empty(size, dtype=torch.int64) for size in sizes)
    return tuple(torch.randint(shape.vocabulary, size, generator=generator) for size in sizes)
