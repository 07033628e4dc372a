"""The GPT that is trained: what a pipeline stage holds of it.

Pre-normalised transformer layers (Radford et al. 2019) as Megatron-LM divides them: attention by heads, the
feed-forward part by its inner width, embedding and output by vocabulary. Attention is written out as two batched
products with a softmax between them. No dropout, so that every plan computes the same numbers.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from engines.megatron.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    Shard,
    VocabularyParallelCrossEntropy,
    VocabularyParallelEmbedding,
    constant,
    divided,
)

if TYPE_CHECKING:
    from torch import Tensor

    from engines.megatron.plan import Shape


class Normalization(nn.Module):
    """Layer normalisation with scale and shift, held whole by every process."""

    def __init__(self, name: str, hidden: int) -> None:
        super().__init__()
        self.weight = constant(f"{name}.weight", torch.ones(hidden), None, Shard())
        self.bias = constant(f"{name}.bias", torch.zeros(hidden), None, Shard())

    def forward(self, x: Tensor) -> Tensor:
        """Over the last dimension."""
        return functional.layer_norm(x, self.weight.shape, self.weight, self.bias)


class Attention(nn.Module):
    """Causal self-attention; the heads are divided over the group."""

    def __init__(self, name: str, shape: Shape, shard: Shard, seed: int) -> None:
        super().__init__()
        self.heads, self.head = shard.of(shape.heads), shape.hidden // shape.heads
        # Query, key and value of one head lie together, so that a part of the rows is whole heads.
        self.query_key_value = ColumnParallelLinear(f"{name}.qkv", shape.hidden, 3 * shape.hidden, shard, seed)
        self.projection = RowParallelLinear(f"{name}.projection", shape.hidden, shape.hidden, shard, seed)
        future = torch.full((shape.sequence, shape.sequence), -math.inf).triu_(1)
        self.register_buffer("future", future, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, sequence, hidden) to the same."""
        batch, sequence, _ = x.shape
        mixed = self.query_key_value(x).view(batch, sequence, self.heads, 3 * self.head).transpose(1, 2)
        query, key, value = mixed.reshape(batch * self.heads, sequence, 3 * self.head).split(self.head, dim=-1)
        scores = torch.baddbmm(self.future.to(query.dtype), query, key.transpose(1, 2), alpha=1 / math.sqrt(self.head))
        context = torch.bmm(functional.softmax(scores, dim=-1), value)
        merged = context.view(batch, self.heads, sequence, self.head).transpose(1, 2).reshape(batch, sequence, -1)
        return self.projection(merged)


class FeedForward(nn.Module):
    """Two linear layers with a GELU between them; the inner width is divided over the group."""

    def __init__(self, name: str, hidden: int, shard: Shard, seed: int) -> None:
        super().__init__()
        self.up = ColumnParallelLinear(f"{name}.up", hidden, 4 * hidden, shard, seed)
        self.down = RowParallelLinear(f"{name}.down", 4 * hidden, hidden, shard, seed)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, sequence, hidden) to the same."""
        return self.down(functional.gelu(self.up(x), approximate="tanh"))


class Layer(nn.Module):
    """One transformer layer."""

    def __init__(self, name: str, shape: Shape, shard: Shard, seed: int) -> None:
        super().__init__()
        self.before_attention = Normalization(f"{name}.before_attention", shape.hidden)
        self.attention = Attention(f"{name}.attention", shape, shard, seed)
        self.before_feed_forward = Normalization(f"{name}.before_feed_forward", shape.hidden)
        self.feed_forward = FeedForward(f"{name}.feed_forward", shape.hidden, shard, seed)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, sequence, hidden) to the same."""
        x = x + self.attention(self.before_attention(x))
        return x + self.feed_forward(self.before_feed_forward(x))


class Embedding(nn.Module):
    """Tokens and positions, at the beginning of the first stage."""

    def __init__(self, shape: Shape, shard: Shard, seed: int) -> None:
        super().__init__()
        self.tokens = VocabularyParallelEmbedding("embedding.tokens", shape.vocabulary, shape.hidden, shard, seed)
        self.positions = divided("embedding.positions", (shape.sequence, shape.hidden), None, Shard(), seed)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (batch, sequence), int64, to (batch, sequence, hidden)."""
        return self.tokens(tokens) + self.positions


class Head(nn.Module):
    """Normalisation, output layer and loss, at the end of the last stage."""

    def __init__(self, shape: Shape, shard: Shard, seed: int) -> None:
        super().__init__()
        self.shard = shard
        self.normalization = Normalization("head.normalization", shape.hidden)
        self.output = ColumnParallelLinear("head.output", shape.hidden, shape.vocabulary, shard, seed, bias=False)

    def forward(self, x: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy over the tokens, a scalar in float32."""
        logits = self.output(self.normalization(x))
        logits = logits.flatten(0, 1).float()
        if self.shard.group is None:
            return functional.cross_entropy(logits, targets.flatten())
        return VocabularyParallelCrossEntropy.apply(logits, targets.flatten(), self.shard)


class Stage(nn.Module):
    """Consecutive layers of the model; the first stage also embeds, the last also computes the loss."""

    def __init__(self, shape: Shape, *, stage: int, stages: int, shard: Shard, seed: int, recompute: bool) -> None:
        super().__init__()
        count = shape.layers // stages
        self.recompute = recompute
        self.embedding = Embedding(shape, shard, seed) if stage == 0 else None
        first = stage * count
        self.layers = nn.ModuleList(Layer(f"layer{n}", shape, shard, seed) for n in range(first, first + count))
        self.head = Head(shape, shard, seed) if stage == stages - 1 else None

    def forward(self, x: Tensor, targets: Tensor | None = None) -> Tensor:
        """Tokens or activations in, activations or (on the last stage) the loss out."""
        if self.embedding is not None:
            x = self.embedding(x)
        for layer in self.layers:
            # Nothing is random in a layer, so there is no state of a generator to keep.
            x = checkpoint(layer, x, use_reentrant=False, preserve_rng_state=False) if self.recompute else layer(x)
        if self.head is None:
            return x
        assert targets is not None
        return self.head(x, targets)
