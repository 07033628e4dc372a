"""What a buffer holds, said exactly but without numbers: which part of which tensor, and which addends of it.

A sub-tensor (the paper's vTensor) is a region of a full tensor and a part of its value. Here the part of the value is
not the i-th of n, which would have to be believed, but says where it comes from: a set of `Term`, each the part that
one operator contributes by going over some boxes of the identifiers that are summed. What two ranks hold can then be
added only if they went over different boxes, and a sum is whole exactly when its boxes tile the operator's domain:
nothing is lost, nothing is counted twice.

All of this is hashable and small. Micro-batches and ranks repeat the same few combinations, so that the algebra below
is memoised and a verification costs little more than a walk over the instructions.
"""

from __future__ import annotations

import itertools
import math
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from engines.superscaler.layout import Box, Reduction

GIVEN = ""
"""The operator of what no operator makes: inputs of the model, constants, weights."""
SEED = "seed"
"""The operator that makes the gradient of the loss."""


class Term(NamedTuple):
    """What one operator contributes to a value (as its output) or to a gradient (by reading the tensor)."""

    micro_batch: int
    """LASTING for weights and constants."""
    op: str
    slot: int
    """Which of its outputs, or of its inputs; of a weight how many updates it has had."""
    domain: Box
    """All that is summed over: one range for every identifier the tensor lacks."""
    boxes: tuple[Box, ...]
    """What was summed over, rising; the domain itself if that is all."""
    reduction: Reduction = "sum"
    """How the rest must be combined with it; always `sum` when nothing is missing."""

    @property
    def complete(self) -> bool:
        """Whether nothing is missing."""
        return self.boxes == (self.domain,)


Content = tuple[Term, ...]
"""A sum of terms, rising and different; empty for zeros."""
POINT: Box = ()
"""The domain of what is not summed."""


class Region(NamedTuple):
    """A box of a buffer, and the equally large box of the full tensor that lies there."""

    local: Box
    whole: Box
    content: Content


class Value(NamedTuple):
    """What a buffer holds: regions that tile it."""

    tensor: str
    kind: Literal["value", "gradient"]
    shape: tuple[int, ...]
    """Of the buffer."""
    regions: tuple[Region, ...]


class Conflict(NamedTuple):
    """Two things that cannot be put together, in plain words."""

    invariant: str
    message: str


def given(micro_batch: int, updates: int = 0) -> Content:
    """The content of an input or a constant, or of a weight after so many updates."""
    return (Term(micro_batch, GIVEN, updates, POINT, (POINT,)),)


def seed(micro_batch: int) -> Content:
    """The content of the gradient of the loss."""
    return (Term(micro_batch, SEED, 0, POINT, (POINT,)),)


def term(micro_batch: int, op: str, slot: int, domain: Box, box: Box, reduction: Reduction = "sum") -> Term:
    """One contribution; the reduction is of no meaning when nothing is missing."""
    return Term(micro_batch, op, slot, domain, (box,), "sum" if box == domain else reduction)


# --- boxes ------------------------------------------------------------------------------------------------------------


def extent(shape: Sequence[int]) -> Box:
    """The box of all of a tensor."""
    return tuple((0, size) for size in shape)


def size(box: Box) -> tuple[int, ...]:
    """Its length along every dim."""
    return tuple(stop - start for start, stop in box)


def volume(box: Box) -> int:
    """How many points it has."""
    return math.prod(stop - start for start, stop in box)


def intersect(one: Box, other: Box) -> Box | None:
    """What they have in common; None if nothing."""
    found = tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(one, other, strict=True))
    return None if any(start >= stop for start, stop in found) else found


def within(box: Box, shape: Sequence[int]) -> bool:
    """Whether it lies in a buffer of a shape, and has as many dims."""
    return len(box) == len(shape) and all(
        0 <= start < stop <= length for (start, stop), length in zip(box, shape, strict=True)
    )


def shift(box: Box, by: Sequence[int]) -> Box:
    """Moved."""
    return tuple((start + step, stop + step) for (start, stop), step in zip(box, by, strict=True))


def written(box: Box) -> str:
    """For people: ``[0:4, 8:16]``."""
    return "[" + ", ".join(f"{start}:{stop}" for start, stop in box) + "]"


# --- contents ---------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1 << 16)
def combined(one: Content, other: Content, reduction: Reduction) -> Content | Conflict:
    """Two contents added (or the greater of both taken), or why that counts something twice or makes no sense.

    Maxima may meet more than once; addends may not.
    """
    found = {entry[:3]: entry for entry in one}
    for entry in other:
        mine = found.get(entry[:3])
        if mine is None:
            found[entry[:3]] = entry
            continue
        joined = _joined(mine, entry, reduction)
        if isinstance(joined, Conflict):
            return joined
        found[entry[:3]] = joined
    if reduction == "max" and len(found) > 1:
        return Conflict(
            "I1", "takes the maximum of values that are not parts of one: " + described(tuple(found.values()))
        )
    if reduction == "max" and (not one or not other):
        return Conflict("I1", "takes the maximum of a value and of zeros that stand for nothing")
    return tuple(sorted(found.values()))


def _joined(mine: Term, entry: Term, reduction: Reduction) -> Term | Conflict:
    if reduction == "max":
        for side in (mine, entry):
            if not side.complete and side.reduction != "max":
                return Conflict("I1", f"takes the maximum of addends ({described((side,))})")
        boxes = tuple(sorted({*mine.boxes, *entry.boxes}))
        if mine.domain in boxes or covers(boxes, mine.domain):
            boxes = (mine.domain,)
        return mine._replace(boxes=boxes, reduction="sum" if boxes == (mine.domain,) else "max")
    for one, other in itertools.product(mine.boxes, entry.boxes):
        twice = intersect(one, other)
        if twice is not None:
            return Conflict("I1", f"counts twice {described((mine._replace(boxes=(twice,)),))}")
    if "max" in (mine.reduction, entry.reduction):
        return Conflict("I1", f"adds parts of a maximum ({described((mine,))})")
    boxes = tuple(sorted((*mine.boxes, *entry.boxes)))
    if sum(map(volume, boxes)) == volume(mine.domain):
        boxes = (mine.domain,)
    return mine._replace(boxes=boxes)


@lru_cache(maxsize=1 << 12)
def covers(boxes: tuple[Box, ...], domain: Box) -> bool:
    """Whether boxes that may overlap reach every point of a domain."""
    cuts = [
        sorted({start for start, _ in axis} | {stop for _, stop in axis} | set(bounds))
        for axis, bounds in zip(zip(*boxes, strict=True), domain, strict=True)
    ]
    for cell in itertools.product(*(itertools.pairwise(axis) for axis in cuts)):
        if intersect(cell, domain) is not None and all(intersect(cell, box) is None for box in boxes):
            return False
    return bool(boxes)


def described(content: Content) -> str:
    """For people: what a content is a sum of."""
    if not content:
        return "zeros"
    return " + ".join(_described(entry) for entry in content[:4]) + (
        f" + {len(content) - 4} more" if len(content) > 4 else ""
    )


def _described(entry: Term) -> str:
    when = f" of micro-batch {entry.micro_batch}" if entry.micro_batch >= 0 else ""
    if entry.op == GIVEN:
        return f"what is given{when}" if entry.micro_batch >= 0 else f"the weight after {entry.slot} updates"
    if entry.op == SEED:
        return f"the loss's own gradient{when}"
    part = "" if entry.complete else " over " + " and ".join(map(written, entry.boxes)) + f" of {written(entry.domain)}"
    return f"the part of {entry.op!r}, tensor {entry.slot}{when}{part}"


def difference(have: Content, want: Content) -> str:
    """For people: why one content is not the other."""
    mine, wanted = {entry[:3]: entry for entry in have}, {entry[:3]: entry for entry in want}
    said = []
    lacks = tuple(entry for key, entry in wanted.items() if key not in mine)
    more = tuple(entry for key, entry in mine.items() if key not in wanted)
    partly = tuple(entry for key, entry in mine.items() if key in wanted and entry != wanted[key])
    if lacks:
        said.append(f"lacks {described(lacks)}")
    if more:
        said.append(f"has {described(more)}, which does not belong to it")
    if partly:
        said.append(f"has only {described(partly)}")
    return " and ".join(said)


# --- values -----------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1 << 16)
def sliced(value: Value, box: Box) -> Value:
    """The part of a buffer in a box of it."""
    start = tuple(-a for a, _ in box)
    regions = []
    for region in value.regions:
        local = intersect(region.local, box)
        if local is not None:
            offset = [b[0] - a[0] for a, b in zip(region.local, region.whole, strict=True)]
            regions.append(Region(shift(local, start), shift(local, offset), region.content))
    return value._replace(shape=size(box), regions=tuple(regions))


@lru_cache(maxsize=1 << 16)
def added(values: tuple[Value, ...], reduction: Reduction) -> Value | Conflict:
    """Buffers of equal shape combined number by number."""
    first = values[0]
    for other in values[1:]:
        if (other.tensor, other.kind) != (first.tensor, first.kind):
            return Conflict("I1", f"combines {named(first)} with {named(other)}")
        if other.shape != first.shape:
            return Conflict("I2", f"combines parts of shapes {first.shape} and {other.shape} of {named(first)}")
    whole = []
    for cell in _cells([region.local for value in values for region in value.regions], extent(first.shape)):
        place, content = None, None
        for value in values:
            here = _at(value, cell)
            if here is None:
                return Conflict("I2", f"reads {written(cell)} of a buffer of {named(value)} that was never written")
            if place is None:
                place, content = here
                continue
            if here[0] != place:
                return Conflict("I2", f"combines the regions {written(place)} and {written(here[0])} of {named(first)}")
            content = combined(content, here[1], reduction)
            if isinstance(content, Conflict):
                return Conflict(content.invariant, f"{content.message} in {named(first)}")
        whole.append(Region(cell, place, content))
    return _tidy(first._replace(regions=tuple(whole)))


@lru_cache(maxsize=1 << 16)
def joined(values: tuple[Value, ...], dim: int) -> Value | Conflict:
    """Buffers put one behind another along a dim."""
    first = values[0]
    regions, offset = [], 0
    for value in values:
        if (value.tensor, value.kind) != (first.tensor, first.kind):
            return Conflict("I1", f"joins {named(first)} and {named(value)}")
        if value.shape[:dim] + value.shape[dim + 1 :] != first.shape[:dim] + first.shape[dim + 1 :]:
            return Conflict("I2", f"joins parts of shapes {first.shape} and {value.shape} of {named(first)}")
        by = [offset if axis == dim else 0 for axis in range(len(value.shape))]
        regions.extend(region._replace(local=shift(region.local, by)) for region in value.regions)
        offset += value.shape[dim]
    shape = (*first.shape[:dim], offset, *first.shape[dim + 1 :])
    return _tidy(first._replace(shape=shape, regions=tuple(regions)))


class Part(NamedTuple):
    """What is written into a box of a buffer."""

    box: Box
    value: Value
    add: bool
    local: bool
    """Whether it is there at once; what comes from others comes in any order."""


def assembled(parts: tuple[Part, ...], shape: tuple[int, ...]) -> Value | Conflict:
    """A buffer made of parts.

    What is local is written first. What comes from others is copied, or added to what is there (at first zeros), in
    whatever order it comes.
    """
    first = parts[0].value
    for part in parts:
        if (part.value.tensor, part.value.kind) != (first.tensor, first.kind):
            return Conflict("I1", f"puts together {named(first)} and {named(part.value)}")
    placed = [
        (Region(shift(region.local, [a for a, _ in part.box]), region.whole, region.content), part)
        for part in parts
        for region in part.value.regions
    ]
    whole = []
    for cell in _cells([region.local for region, _ in placed], extent(shape)):
        here = [(region, part) for region, part in placed if intersect(region.local, cell) is not None]
        if not here:
            return Conflict("I2", f"writes nothing into {written(cell)} of a buffer of {named(first)}")
        copies = [part for _, part in here if not part.add]
        if len(copies) > 1:
            return Conflict("I2", f"writes {written(cell)} of a buffer of {named(first)} more than once")
        if copies and len(here) > 1 and not (copies[0].local and here[0][1] is copies[0]):
            return Conflict(
                "I5",
                f"copies into {written(cell)} of a buffer of {named(first)} what may come after what is added there",
            )
        place: Box | None = None
        content: Content = ()
        for region, _ in here:
            offset = [b[0] - a[0] for a, b in zip(region.local, region.whole, strict=True)]
            if place not in (None, shift(cell, offset)):
                return Conflict(
                    "I2", f"adds the regions {written(place)} and {written(shift(cell, offset))} of {named(first)}"
                )
            place = shift(cell, offset)
            total = combined(content, region.content, "sum") if content else region.content
            if isinstance(total, Conflict):
                return Conflict(total.invariant, f"{total.message} in {named(first)}")
            content = total
        whole.append(Region(cell, place or POINT, content))
    return _tidy(first._replace(shape=shape, regions=tuple(whole)))


def named(value: Value) -> str:
    """For people."""
    return f"the {'gradient of ' if value.kind == 'gradient' else ''}{value.tensor!r}"


def _cells(boxes: Sequence[Box], whole: Box) -> Iterable[Box]:
    """The grid that the edges of all boxes cut a buffer into."""
    if all(box == whole for box in boxes):
        return (whole,)
    cuts = [sorted({edge for box in boxes for edge in box[axis]} | set(bounds)) for axis, bounds in enumerate(whole)]
    return itertools.product(*(itertools.pairwise(axis) for axis in cuts))


def _at(value: Value, cell: Box) -> tuple[Box, Content] | None:
    for region in value.regions:
        if intersect(region.local, cell) is not None:
            offset = [b[0] - a[0] for a, b in zip(region.local, region.whole, strict=True)]
            return shift(cell, offset), region.content
    return None


def _tidy(value: Value) -> Value:
    """One region if the regions are neighbours in the buffer as they are in the tensor, and alike."""
    first = value.regions[0]
    offset = [b[0] - a[0] for a, b in zip(first.local, first.whole, strict=True)]
    for region in value.regions:
        if region.content != first.content or shift(region.local, offset) != region.whole:
            return value
    local = extent(value.shape)
    if sum(volume(region.local) for region in value.regions) != volume(local):
        return value
    return value._replace(regions=(Region(local, shift(local, offset), first.content),))
