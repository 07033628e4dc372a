"""Sub-tensors by their masks: which region of a tensor, and which addend of its value.

Producers and consumers of a tensor are matched by where their masks meet, never by who they are. A mask has a spatial
part, a box, and a value part, (i, n): the i-th of n addends of a sum, which stands for the interval [i/n, (i+1)/n) of
[0, 1). Splitting an addend again, (i, n) into its j-th of m, gives (i*m + j, n*m): intervals nest as the addends do.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from engines.superscaler.layout import Box

WHOLE = (0, 1)
"""The value part of a value that is no addend."""


@dataclass(frozen=True, order=True)
class VTensor:
    """A sub-tensor (the paper's vTensor) of the tensor called `tensor` (its pTensor)."""

    tensor: str
    box: Box
    part: tuple[int, int] = WHOLE

    def __post_init__(self) -> None:
        index, count = self.part
        if not 0 <= index < count:
            raise ValueError(f"there is no addend {index} of {count}")
        if any(start >= stop or start < 0 for start, stop in self.box):
            raise ValueError(f"a sub-tensor has elements: {self.box}")

    @property
    def interval(self) -> tuple[Fraction, Fraction]:
        """The share of the value, exactly."""
        index, count = self.part
        return Fraction(index, count), Fraction(index + 1, count)

    def split(self, dim: int, parts: int) -> tuple[VTensor, ...]:
        """Equal regions along a dim.

        Raises:
            ValueError: the dim does not divide.
        """
        start, stop = self.box[dim]
        length, rest = divmod(stop - start, parts)
        if rest or not length:
            raise ValueError(f"{stop - start} elements along dim {dim} cannot be split into {parts} equal parts")
        return tuple(
            VTensor(self.tensor, (*self.box[:dim], (at, at + length), *self.box[dim + 1 :]), self.part)
            for at in range(start, stop, length)
        )

    def divide(self, parts: int) -> tuple[VTensor, ...]:
        """Addends of this one's value."""
        index, count = self.part
        return tuple(VTensor(self.tensor, self.box, (index * parts + one, count * parts)) for one in range(parts))

    def intersects(self, other: VTensor) -> bool:
        """Whether the two have something in common: the tensor, a region and a share of the value."""
        (low, high), (start, stop) = self.interval, other.interval
        return (
            self.tensor == other.tensor
            and len(self.box) == len(other.box)
            and all(a < d and c < b for (a, b), (c, d) in zip(self.box, other.box, strict=True))
            and low < stop
            and start < high
        )

    def intersection(self, other: VTensor) -> VTensor | None:
        """What the two have in common; None if nothing.

        Raises:
            ValueError: neither's share of the value lies within the other's, so that what they share is no addend.
        """
        if not self.intersects(other):
            return None
        (low, high), (start, stop) = self.interval, other.interval
        if low <= start and stop <= high:
            part = other.part
        elif start <= low and high <= stop:
            part = self.part
        else:
            raise ValueError(f"addends {self.part} and {other.part} overlap and neither holds the other")
        box = tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(self.box, other.box, strict=True))
        return VTensor(self.tensor, box, part)


def gap(parts: Iterable[VTensor], box: Box, part: tuple[int, int] = WHOLE) -> str:
    """Why sub-tensors do not make up exactly what is wanted; empty if they do.

    Equal masks are copies of one another and count once. Otherwise every element of the box must have addends whose
    shares tile that of `part`, with no gap (something is missing) and no overlap (something counts twice).

    Args:
        parts: Sub-tensors of one tensor.
        box: The region that is wanted.
        part: The addend that is wanted.
    """
    wanted = VTensor("", box, part)
    low, high = wanted.interval
    masks = {VTensor("", one.box, one.part) for one in parts}
    near = sorted(mask for mask in masks if mask.intersects(wanted))
    cuts = []
    for dim, (start, stop) in enumerate(box):
        ends = {min(max(end, start), stop) for mask in near for end in mask.box[dim]}
        cuts.append(tuple(itertools.pairwise(sorted({start, stop, *ends}))))
    for cell in itertools.product(*cuts):
        at = low
        for start, stop, mask in sorted((*mask.interval, mask) for mask in near if _within(cell, mask.box)):
            if start > at:
                return f"of {cell} the share {at} to {start} is missing"
            if start < at:
                return f"of {cell} the share from {start} to {min(at, stop)} comes twice, again from addend {mask.part}"
            at = stop
        if at < high:
            return f"of {cell} the share {at} to {high} is missing"
        if at > high:
            return f"of {cell} the share {high} to {at} is too much"
    return ""


def covers(parts: Iterable[VTensor], box: Box, part: tuple[int, int] = WHOLE) -> bool:
    """Whether sub-tensors make up exactly the wanted region and addend; `gap` says why not."""
    return not gap(parts, box, part)


def _within(cell: Box, box: Box) -> bool:
    return all(a <= c and d <= b for (a, b), (c, d) in zip(box, cell, strict=True))
