"""Layers whose weights are divided over a tensor-parallel group (Shoeybi et al. 2019, section 3).

A matrix divided by columns turns one input into a part of the output on each process; the matrix after it, divided by
rows, turns these parts into partial sums. Between the two nothing is communicated. Two conjugate operators stand at
the ends of such a block: *f* passes its input on and sums the gradients on the way back, *g* sums on the way forward
and passes the gradients back.

The group is `None` where there is nobody to share with, and then nothing is communicated.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

STANDARD_DEVIATION = 0.02


@dataclass(frozen=True)
class Shard:
    """The part of every divided parameter that one process holds."""

    group: dist.ProcessGroup | None = None
    index: int = 0
    count: int = 1

    def of(self, size: int) -> int:
        """A process's part of a dimension."""
        return size // self.count


def initial(name: str, shape: Sequence[int], seed: int) -> Tensor:
    """The whole of a parameter at the start of training: float32, normal with deviation 0.02.

    It depends on the seed and the parameter's name alone, so every plan starts from the same model.
    """
    key = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "little", signed=True))
    return torch.empty(*shape).normal_(0.0, STANDARD_DEVIATION, generator=generator)


def own_part(whole: Tensor, dim: int | None, shard: Shard) -> Tensor:
    """What a process keeps of a parameter; all of it where `dim` is None."""
    return whole if dim is None else whole.chunk(shard.count, dim)[shard.index].contiguous()


def divided(name: str, shape: Sequence[int], dim: int | None, shard: Shard, seed: int) -> nn.Parameter:
    """This process's part of a parameter, which remembers how it was divided."""
    parameter = nn.Parameter(own_part(initial(name, shape, seed), dim, shard))
    parameter.whole_name, parameter.divided_along = name, dim  # type: ignore[attr-defined]
    return parameter


def constant(name: str, value: Tensor, dim: int | None, shard: Shard) -> nn.Parameter:
    """This process's part of a parameter that starts at a constant."""
    parameter = nn.Parameter(own_part(value, dim, shard))
    parameter.whole_name, parameter.divided_along = name, dim  # type: ignore[attr-defined]
    return parameter


class CopyToGroup(torch.autograd.Function):
    """The operator f: identity forward, all-reduce backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        """Pass on."""
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Sum the gradients of the group."""
        gradient = gradient.contiguous()
        dist.all_reduce(gradient, group=ctx.group)
        return gradient, None


class ReduceFromGroup(torch.autograd.Function):
    """The operator g: all-reduce forward, identity backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        """Sum the partial results of the group, in place: nobody else reads them."""
        ctx.mark_dirty(x)
        dist.all_reduce(x, group=group)
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # noqa: ARG004
        """Pass back."""
        return gradient, None


class ColumnParallelLinear(nn.Module):
    """`x W^T + b`, whose output features are divided: in (..., inputs), out (..., outputs / count)."""

    def __init__(self, name: str, inputs: int, outputs: int, shard: Shard, seed: int, *, bias: bool = True) -> None:
        super().__init__()
        self.shard = shard
        self.weight = divided(f"{name}.weight", (outputs, inputs), 0, shard, seed)
        self.bias = constant(f"{name}.bias", torch.zeros(outputs), 0, shard) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """This process's part of the outputs."""
        if self.shard.group is not None:
            x = CopyToGroup.apply(x, self.shard.group)
        return functional.linear(x, self.weight, self.bias)


class RowParallelLinear(nn.Module):
    """`x W^T + b`, whose input features are divided: in (..., inputs / count), out (..., outputs) on every process."""

    def __init__(self, name: str, inputs: int, outputs: int, shard: Shard, seed: int) -> None:
        super().__init__()
        self.shard = shard
        self.weight = divided(f"{name}.weight", (outputs, inputs), 1, shard, seed)
        self.bias = constant(f"{name}.bias", torch.zeros(outputs), None, shard)

    def forward(self, x: Tensor) -> Tensor:
        """The sum over the group; the bias is added once, after it."""
        if self.shard.group is None:
            return functional.linear(x, self.weight, self.bias)
        return ReduceFromGroup.apply(functional.linear(x, self.weight), self.shard.group) + self.bias


class VocabularyParallelEmbedding(nn.Module):
    """Rows of the embedding divided over the group: tokens outside a process's rows give zeros there."""

    def __init__(self, name: str, vocabulary: int, hidden: int, shard: Shard, seed: int) -> None:
        super().__init__()
        self.shard = shard
        self.rows = shard.of(vocabulary)
        self.weight = divided(f"{name}.weight", (vocabulary, hidden), 0, shard, seed)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (batch, sequence), int64, to (batch, sequence, hidden)."""
        if self.shard.group is None:
            return functional.embedding(tokens, self.weight)
        local, elsewhere = own_tokens(tokens, self.shard, self.rows)
        found = functional.embedding(local, self.weight).masked_fill(elsewhere.unsqueeze(-1), 0.0)
        return ReduceFromGroup.apply(found, self.shard.group)


def own_tokens(tokens: Tensor, shard: Shard, rows: int) -> tuple[Tensor, Tensor]:
    """Tokens as rows of this process's part, and which of them are not in it (those point at row 0)."""
    local = tokens - shard.index * rows
    elsewhere = (local < 0) | (local >= rows)
    return local.masked_fill(elsewhere, 0), elsewhere


class VocabularyParallelCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of logits whose vocabulary is divided, without gathering them.

    Three all-reduces of one number a token: the largest logit, the target's logit, the sum of exponentials.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, shard: Shard) -> Tensor:
        """Logits (tokens, vocabulary / count) float32, targets (tokens,) int64, to a scalar."""
        largest = logits.amax(dim=-1)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=shard.group)
        shifted = logits - largest.unsqueeze(-1)
        local, elsewhere = own_tokens(targets, shard, logits.shape[-1])
        target = shifted.gather(-1, local.unsqueeze(-1)).squeeze(-1).masked_fill_(elsewhere, 0.0)
        exponentials = shifted.exp_()
        total = exponentials.sum(dim=-1)
        dist.all_reduce(target, group=shard.group)
        dist.all_reduce(total, group=shard.group)
        probabilities = exponentials.div_(total.unsqueeze(-1))
        ctx.save_for_backward(probabilities, local, elsewhere)
        return (total.log() - target).mean()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """Probabilities less one at the target, over the number of tokens."""
        probabilities, local, elsewhere = ctx.saved_tensors
        at_target = (~elsewhere).to(probabilities.dtype).neg_().unsqueeze(-1)
        result = probabilities.scatter_add(-1, local.unsqueeze(-1), at_target)
        return result.mul_(gradient / local.numel()), None, None
