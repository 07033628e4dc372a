"""AlphaFold2's Evoformer, with recycling (Jumper et al., Nature 2021; algorithms 6 to 15 of its supplement).

The stack runs several times; only the last pass has gradients, the ones before feed it. That makes more forward passes
than backward ones, which is what the 3F1B plan is for.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional

_ALPHAFOLD = {"batch": 1, "blocks": 48, "msa": 256, "pair": 128, "msa_heads": 8, "pair_heads": 4, "outer": 32}
PRESETS: dict[str, dict[str, Any]] = {
    "initial": {**_ALPHAFOLD, "sequences": 128, "residues": 256},
    "fine-tuning": {**_ALPHAFOLD, "sequences": 512, "residues": 384},
}


class Shape(NamedTuple):
    """Sizes; the defaults are the tiny preset."""

    batch: int = 8
    sequences: int = 8
    residues: int = 12
    blocks: int = 2
    msa: int = 32
    """Width of the representation of sequences."""
    pair: int = 16
    """Width of the representation of pairs of residues."""
    msa_heads: int = 8
    pair_heads: int = 4
    outer: int = 4
    words: int = 22
    bins: int = 16
    """Of distances between residues."""
    recycles: int = 3
    """Passes through the stack, the last of which has gradients."""


class Attention(nn.Module):
    """Gated self-attention along the last but one dim, with a bias made of the pairs (algorithms 7, 8, 13, 14)."""

    def __init__(self, width: int, heads: int, pair: int = 0) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.gate = nn.Linear(width, width)
        self.projection = nn.Linear(width, width)
        self.pair_norm = nn.LayerNorm(pair) if pair else None
        self.bias = nn.Linear(pair, heads, bias=False) if pair else None

    def forward(self, x: torch.Tensor, pairs: torch.Tensor | None = None) -> torch.Tensor:
        """(batch, rows, n, width) and (batch, n, n, pair) -> (batch, rows, n, width)."""
        x = self.norm(x)
        query, key, value = (self._heads(made(x)) for made in (self.query, self.key, self.value))
        scores = torch.einsum("brihc,brjhc->brhij", query * query.shape[-1] ** -0.5, key)
        if self.bias is not None and self.pair_norm is not None and pairs is not None:
            scores = scores + self.bias(self.pair_norm(pairs)).permute(0, 3, 1, 2).unsqueeze(1)
        mixed = torch.einsum("brhij,brjhc->brihc", scores.softmax(-1), value)
        return self.projection((self._heads(self.gate(x)).sigmoid() * mixed).flatten(-2))

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.heads, -1))


class Transition(nn.Module):
    """Two maps around a ReLU (algorithms 9 and 15)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., width) -> the same."""
        return self.down(functional.relu(self.up(self.norm(x))))


class OuterProductMean(nn.Module):
    """Pairs from sequences (algorithm 10)."""

    def __init__(self, msa: int, outer: int, pair: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(msa)
        self.left = nn.Linear(msa, outer)
        self.right = nn.Linear(msa, outer)
        self.projection = nn.Linear(outer * outer, pair)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, sequences, residues, msa) -> (batch, residues, residues, pair)."""
        x = self.norm(x)
        products = torch.einsum("bsic,bsjd->bijcd", self.left(x), self.right(x)) / x.shape[1]
        return self.projection(products.flatten(-2))


class TriangleMultiplication(nn.Module):
    """Pairs from the two other sides of each triangle (algorithms 11 and 12)."""

    def __init__(self, pair: int, *, outgoing: bool) -> None:
        super().__init__()
        self.equation = "bikc,bjkc->bijc" if outgoing else "bkic,bkjc->bijc"
        self.norm = nn.LayerNorm(pair)
        self.left = nn.Linear(pair, pair)
        self.left_gate = nn.Linear(pair, pair)
        self.right = nn.Linear(pair, pair)
        self.right_gate = nn.Linear(pair, pair)
        self.gate = nn.Linear(pair, pair)
        self.product_norm = nn.LayerNorm(pair)
        self.projection = nn.Linear(pair, pair)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, residues, residues, pair) -> the same."""
        x = self.norm(x)
        left = self.left_gate(x).sigmoid() * self.left(x)
        right = self.right_gate(x).sigmoid() * self.right(x)
        product = torch.einsum(self.equation, left, right)
        return self.gate(x).sigmoid() * self.projection(self.product_norm(product))


class Block(nn.Module):
    """One block (algorithm 6)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.row_attention = Attention(shape.msa, shape.msa_heads, shape.pair)
        self.column_attention = Attention(shape.msa, shape.msa_heads)
        self.msa_transition = Transition(shape.msa)
        self.outer_product = OuterProductMean(shape.msa, shape.outer, shape.pair)
        self.outgoing = TriangleMultiplication(shape.pair, outgoing=True)
        self.incoming = TriangleMultiplication(shape.pair, outgoing=False)
        self.starting = Attention(shape.pair, shape.pair_heads, shape.pair)
        self.ending = Attention(shape.pair, shape.pair_heads, shape.pair)
        self.pair_transition = Transition(shape.pair)

    def forward(self, msa: torch.Tensor, pairs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(batch, sequences, residues, msa), (batch, residues, residues, pair) -> the same."""
        msa = msa + self.row_attention(msa, pairs)
        msa = msa + self.column_attention(msa.transpose(1, 2)).transpose(1, 2)
        msa = msa + self.msa_transition(msa)
        pairs = pairs + self.outer_product(msa)
        pairs = pairs + self.outgoing(pairs)
        pairs = pairs + self.incoming(pairs)
        pairs = pairs + self.starting(pairs, pairs)
        turned = pairs.transpose(1, 2)
        pairs = pairs + self.ending(turned, turned).transpose(1, 2)
        return msa, pairs + self.pair_transition(pairs)


class Model(nn.Module):
    """Embeddings, the stack with recycling, and two losses: masked words and distances."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.recycles = shape.recycles
        self.words = nn.Embedding(shape.words, shape.msa)
        self.left = nn.Embedding(shape.words, shape.pair)
        self.right = nn.Embedding(shape.words, shape.pair)
        self.msa_norm = nn.LayerNorm(shape.msa)
        self.pair_norm = nn.LayerNorm(shape.pair)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.blocks))
        self.word_head = nn.Linear(shape.msa, shape.words)
        self.distance_head = nn.Linear(shape.pair, shape.bins)

    def forward(
        self, msa: torch.Tensor, target: torch.Tensor, masked: torch.Tensor, distances: torch.Tensor
    ) -> torch.Tensor:
        """Words (batch, sequences, residues) and of the protein itself (batch, residues); what to find -> mean loss."""
        rows, pairs = self._embedded(msa, target)
        for _ in range(self.recycles - 1):
            with torch.no_grad():
                before = self._stack(rows, pairs)
                rows, pairs = (one.detach() for one in before)
            # What the next pass starts from is embedded again: only that has a gradient.
            rows, pairs = self._recycled(msa, target, rows, pairs)
        rows, pairs = self._stack(rows, pairs)
        word_scores = self.word_head(rows).float().permute(0, 3, 1, 2)
        distance_scores = self.distance_head(pairs).float().permute(0, 3, 1, 2)
        return functional.cross_entropy(word_scores, masked) + functional.cross_entropy(distance_scores, distances)

    def _embedded(self, msa: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.words(msa), self.left(target).unsqueeze(2) + self.right(target).unsqueeze(1)

    def _recycled(
        self, msa: torch.Tensor, target: torch.Tensor, rows: torch.Tensor, pairs: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        new_rows, new_pairs = self._embedded(msa, target)
        return new_rows + self.msa_norm(rows), new_pairs + self.pair_norm(pairs)

    def _stack(self, rows: torch.Tensor, pairs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        for block in self.blocks:
            rows, pairs = block(rows, pairs)
        return rows, pairs


def batch(shape: Shape, generator: torch.Generator | None) -> tuple[torch.Tensor, ...]:
    """Words of all sequences, of the protein, masked words, and bins of distances."""
    rows = (shape.batch, shape.sequences, shape.residues)
    protein, pairs = (shape.batch, shape.residues), (shape.batch, shape.residues, shape.residues)
    sizes = ((shape.words, rows), (shape.words, protein), (shape.words, rows), (shape.bins, pairs))
    if generator is None:
        return tuple(torch.empty(size, dtype=torch.int64) for _, size in sizes)
    return tuple(torch.randint(count, size, generator=generator) for count, size in sizes)
