"""The fewest elements that must be sent, whoever sends them."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engines.superscaler.layout import Layout


def lower_bound(source: Layout, target: Layout, shape: tuple[int, ...]) -> int:
    """Elements that all ranks together must receive to come from one layout to another.

    It is counted for every element by itself. If it is whole at the source, each rank that needs and lacks it must
    receive it. If there are v > 1 addends, spread over ranks with copies or not: until the first rank knows the sum, at
    least v - 1 messages have come together in it (each joins what two ranks know), or v if it held no addend; every
    other rank that needs the sum knows it later, so it receives at least one more. With k ranks in need that is
    v - 1 + k - 1 if one of them holds an addend, else v - 1 + k. (For v = k = c: 2(c - 1), a ring all-reduce.)

    If the target has addends itself, an addend may stay where it is, whoever needs it: only those that no rank of the
    target holds must be sent. That bound is valid, and not tight.

    Args:
        source: What there is.
        target: What is wanted, on the same devices or others.
        shape: Of the whole tensor.
    """
    cuts = []
    for dim, size in enumerate(shape):
        ends = {size}
        for layout in (source, target):
            length = layout.local_shape(shape)[dim]
            ends.update(range(length, size + 1, length))
        cuts.append(list(itertools.pairwise([0, *sorted(ends)])))
    held, needed = list(source.held(shape)), list(target.held(shape))
    summing = all(count == 1 for _, _, (_, count) in needed)
    total = 0
    for cell in itertools.product(*cuts):
        holders: dict[int, set[int]] = {}
        for device, box, (index, _) in held:
            if _contains(box, cell):
                holders.setdefault(index, set()).add(device)
        consumers = {device for device, box, _ in needed if _contains(box, cell)}
        if not summing:
            messages = sum(1 for ranks in holders.values() if not ranks & consumers)
        elif len(holders) == 1:
            messages = len(consumers - holders[0])
        else:
            known = consumers & set().union(*holders.values())
            messages = len(holders) - 1 + len(consumers) - bool(known)
        total += messages * math.prod(stop - start for start, stop in cell)
    return total


def _contains(box: tuple[tuple[int, int], ...], cell: tuple[tuple[int, int], ...]) -> bool:
    return all(start <= low and high <= stop for (start, stop), (low, high) in zip(box, cell, strict=True))
