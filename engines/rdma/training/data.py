"""Small data that can be learnt, made on the spot.

No data set is downloaded: every task draws its samples from a seeded generator, so that any rank can make any batch
without being sent it, and a loss curve is the same on every machine. A batch is keyed by the seed and its number; the
structure to be learnt (class patterns, vocabularies, topics) by the seed alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor

STRUCTURE = 1_000_003
"""Multiplier that keeps the generators of two seeds apart whatever the batch number."""


@dataclass(frozen=True)
class Batch:
    """Inputs of a model, and what it should say about them; the first dimension counts samples."""

    inputs: tuple[Tensor, ...]
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def share(self, index: int, shares: int) -> Batch:
        """Piece `index` of `shares` equal ones.

        Raises:
            ValueError: the samples cannot be shared out equally, so that the mean of means would not be the mean.
        """
        if len(self) % shares:
            raise ValueError(f"a batch of {len(self)} samples cannot be cut into {shares} equal shares")
        each = len(self) // shares
        piece = slice(index * each, (index + 1) * each)
        return Batch(tuple(tensor[piece] for tensor in self.inputs), self.targets[piece])


class Task(ABC):
    """Where a model's batches come from."""

    unit = "samples"
    """What throughput counts: images, tokens, pairs."""

    @property
    @abstractmethod
    def units_per_sample(self) -> int:
        """How many of `unit` one sample is."""

    @abstractmethod
    def batch(self, number: int, size: int, seed: int) -> Batch:
        """Batch `number` of the stream that `seed` names; equal on every rank."""


def _structure(seed: int, task: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * STRUCTURE + task)


def _samples(seed: int, number: int) -> torch.Generator:
    return torch.Generator().manual_seed((seed + 1) * STRUCTURE * 97 + number)


@dataclass(frozen=True)
class Images(Task):
    """Pictures like those of CIFAR-10: each class is a smooth pattern, shown shifted and under noise.

    Inputs: float32 (samples, 3, pixels, pixels), or (samples, channels * pixels * pixels) if `flat`.
    Targets: int64 class numbers.
    """

    pixels: int
    classes: int
    channels: int = 3
    flat: bool = False
    noise: float = 0.5
    """Standard deviation of the noise, where the pattern's is one."""

    unit = "images"
    units_per_sample = 1

    def batch(self, number: int, size: int, seed: int) -> Batch:
        """Draw classes, shifts and noise."""
        coarse = torch.randn(self.classes, self.channels, 4, 4, generator=_structure(seed, 1))
        patterns = functional.interpolate(coarse, self.pixels, mode="bilinear", align_corners=True)
        draw = _samples(seed, number)
        labels = torch.randint(self.classes, (size,), generator=draw)
        shifts = torch.randint(-(self.pixels // 8), self.pixels // 8 + 1, (size, 2), generator=draw).tolist()
        shown = torch.stack(
            [torch.roll(patterns[k], tuple(s), (1, 2)) for k, s in zip(labels.tolist(), shifts, strict=True)]
        )
        images = shown + self.noise * torch.randn(shown.shape, generator=draw)
        return Batch((images.flatten(1) if self.flat else images,), labels)


@dataclass(frozen=True)
class TokenStream(Task):
    """Text from a Markov chain: every token has few successors, so that the next one can be guessed.

    Inputs: int64 (samples, length). Targets: the same moved on by one.
    """

    vocabulary: int
    length: int
    successors: int = 4

    unit = "tokens"

    @property
    def units_per_sample(self) -> int:
        """Tokens that are predicted."""
        return self.length

    def batch(self, number: int, size: int, seed: int) -> Batch:
        """Walk the chain."""
        follows = torch.randint(self.vocabulary, (self.vocabulary, self.successors), generator=_structure(seed, 2))
        draw = _samples(seed, number)
        tokens = [torch.randint(self.vocabulary, (size,), generator=draw)]
        for _ in range(self.length):
            choice = torch.randint(self.successors, (size,), generator=draw)
            tokens.append(follows[tokens[-1], choice])
        text = torch.stack(tokens, dim=1)
        return Batch((text[:, :-1].contiguous(),), text[:, 1:].contiguous())


@dataclass(frozen=True)
class Reversal(Task):
    """Sequence to sequence: the source backwards, each word in another vocabulary.

    Inputs: int64 source (samples, length) and decoder input (samples, length), which starts with token 0.
    Targets: int64 (samples, length). Token 0 is kept for the start of a sentence.
    """

    vocabulary: int
    length: int

    unit = "tokens"

    @property
    def units_per_sample(self) -> int:
        """Target tokens."""
        return self.length

    def batch(self, number: int, size: int, seed: int) -> Batch:
        """Draw sources and translate them."""
        dictionary = 1 + torch.randperm(self.vocabulary - 1, generator=_structure(seed, 3))
        source = torch.randint(1, self.vocabulary, (size, self.length), generator=_samples(seed, number))
        target = dictionary[source.flip(1) - 1]
        shown = functional.pad(target[:, :-1], (1, 0))
        return Batch((source, shown), target)


@dataclass(frozen=True)
class SentencePairs(Task):
    """Do two sentences speak of the same topic? Each topic has its own words; half of the pairs agree.

    Inputs: int64 sentences (samples, length), two of them, or one of twice the length if `joined`.
    Targets: int64, 1 for the same topic.
    """

    vocabulary: int
    length: int
    topics: int = 16
    joined: bool = False

    unit = "pairs"
    units_per_sample = 1

    def batch(self, number: int, size: int, seed: int) -> Batch:
        """Draw topics, then words of each."""
        words = torch.randperm(self.vocabulary, generator=_structure(seed, 4))
        each = self.vocabulary // self.topics
        draw = _samples(seed, number)
        first = torch.randint(self.topics, (size,), generator=draw)
        same = torch.randint(2, (size,), generator=draw)
        away = torch.randint(1, self.topics, (size,), generator=draw)
        second = torch.where(same == 1, first, (first + away) % self.topics)

        def sentence(topic: Tensor) -> Tensor:
            return words[topic[:, None] * each + torch.randint(each, (size, self.length), generator=draw)]

        pair = (sentence(first), sentence(second))
        return Batch((torch.cat(pair, dim=1),) if self.joined else pair, same)
