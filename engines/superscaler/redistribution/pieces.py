"""What goes from whom to whom, when every rank is sent exactly what it lacks."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from engines.superscaler.layout import Box, Layout


class Piece(NamedTuple):
    """A region of one addend that a rank needs, and the rank that it has it from (itself, if it stays)."""

    source: int
    target: int
    box: Box
    """In the whole tensor."""
    addend: tuple[int, int]
    """(i, n): the i-th of the n addends that the target sums; (0, 1) is the value itself."""

    @property
    def elements(self) -> int:
        """Numbers in the region."""
        return math.prod(stop - start for start, stop in self.box)


def pieces(before: Layout, after: Layout, shape: tuple[int, ...]) -> tuple[Piece, ...]:
    """The messages that turn one layout into another, and what stays where it is (source == target).

    Every element of every addend that a target needs comes once: from itself if it has it, else from the holder that
    sends least so far. If targets hold addends themselves, the i-th of n addends goes to the one whose share of [0, 1)
    has i/n in it, and those that get none hold zeros. The meshes may differ and may share devices.

    Args:
        before: What is held.
        after: What is needed.
        shape: Of the whole tensor.

    Raises:
        ValueError: a dim does not divide, or maxima are to become addends of a sum, or more maxima than there are.
    """
    if before.partial and after.partial and before.reduction != after.reduction:
        raise ValueError(f"addends of a {before.reduction} cannot become addends of a {after.reduction}")
    lengths = before.local_shape(shape)
    holders: dict[tuple[Box, int], list[int]] = {}
    held: dict[int, tuple[Box, int]] = {}
    addends = 1
    for device, box, (index, count) in before.held(shape):
        addends = count
        held[device] = (box, index)
        holders.setdefault(held[device], []).append(device)
    load = dict.fromkeys(before.mesh.devices, 0)
    found = []
    for device, box, (part, parts) in after.held(shape):
        if parts > addends and after.reduction != "sum":
            raise ValueError(f"{addends} parts of a {after.reduction} cannot become {parts}: zeros would count")
        mine = range(-(-part * addends // parts), -(-(part + 1) * addends // parts))
        # The source's boxes along each dim that the target's box meets, each with what they have in common.
        met = [
            [
                ((at, at + length), (max(start, at), min(stop, at + length)))
                for at in range(start // length * length, stop, length)
            ]
            for (start, stop), length in zip(box, lengths, strict=True)
        ]
        for cell in itertools.product(*met):
            whole, region = tuple(one for one, _ in cell), tuple(other for _, other in cell)
            size = math.prod(stop - start for start, stop in region)
            for index in mine:
                if held.get(device) == (whole, index):
                    source = device
                else:
                    source = min(holders[whole, index], key=lambda rank: (load[rank], rank))
                    load[source] += size
                found.append(Piece(source, device, region, (index, addends)))
    return tuple(found)
