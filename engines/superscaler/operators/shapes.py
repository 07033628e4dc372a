"""Annotations that follow from shapes: views, broadcasts, reductions. Pure arithmetic."""

from __future__ import annotations

import itertools
import operator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from engines.superscaler.operators.table import Call

Shape = tuple[int, ...]


def dims(rank: int, frozen: Collection[int] = (), *, suffix: Mapping[int, str] | None = None) -> list[str]:
    """`d0 d1 ...`, with `^` on frozen ones or other suffixes."""
    suffix = suffix or {}
    return [f"d{n}{'^' if n in frozen else suffix.get(n, '')}" for n in range(rank)]


def line(inputs: Sequence[Sequence[str]], outputs: Sequence[Sequence[str]]) -> str:
    """An annotation from its identifiers."""
    return " -> ".join(", ".join(" ".join(tensor) for tensor in side) for side in (inputs, outputs))


def broadcast(call: Call, frozen: Collection[int] = ()) -> str:
    """Element-wise with broadcasting: dims align at the right, those of size one are repeated."""
    shape = call.outputs[0]
    names = dims(len(shape), frozen)
    written = []
    for given in call.inputs:
        aligned = names[len(names) - len(given) :]
        there = shape[len(shape) - len(given) :]
        written.append(
            ["1" if size == 1 != whole else name for size, whole, name in zip(given, there, aligned, strict=True)]
        )
    return line(written, [names] * len(call.outputs))


def unary(frozen: str = "") -> Callable[[Call], str]:
    """Like its input; the dim (or dims) that the attribute `frozen` names cannot be split."""

    def annotate(call: Call) -> str:
        rank = len(call.inputs[0])
        fixed = call.attributes.get(frozen, ()) if frozen else ()
        names = dims(rank, (fixed,) if isinstance(fixed, int) else fixed)
        return line([names], [names] * len(call.outputs))

    return annotate


def reduction(how: str) -> Callable[[Call], str]:
    """Some dims (attribute `dim`) go; parts combine as the suffix `how` (`+`, `|max`, `^`) says."""

    def annotate(call: Call) -> str:
        rank = len(call.inputs[0])
        gone = call.attributes["dim"]
        # The largest of parts is the largest of all, but the gradient of a part's largest is not the whole's.
        suffix = "^" if how == "|max" and call.differentiable else how
        names = dims(rank, suffix=dict.fromkeys(gone, suffix))
        kept = [
            "1" if n in gone else name for n, name in enumerate(names) if n not in gone or call.attributes["keepdim"]
        ]
        return line([names], [kept])

    return annotate


def view(call: Call) -> tuple[str, dict[str, int]]:
    """Dims that a view fuses or takes apart, by matching factors from the left.

    `(b, s, hidden) -> (b, s, heads, width)` gives `d0 d1 (d2 d3) -> d0 d1 d2 d3`: splitting `d2` splits `hidden` into
    whole heads. Where the leading sizes of one side do not divide those of the other, the dims between two places at
    which they agree cannot be split.
    """
    sides = (call.inputs[0], call.outputs[0])
    ends = [list(itertools.accumulate((size for size in side if size != 1), operator.mul)) for side in sides]
    factors: list[tuple[int, int, str]] = []
    sizes: dict[str, int] = {}
    low = 1
    for high in sorted(set(ends[0]) & set(ends[1])):
        marks = sorted({low, *(end for side in ends for end in side if low < end <= high)})
        steps = list(itertools.pairwise(marks))
        if all(stop % start == 0 for start, stop in steps):
            for start, stop in steps:
                factors.append((start, stop, f"d{len(factors)}"))
                sizes[factors[-1][2]] = stop // start
        low = high
    before, after = ([*_factored(side, factors, letter)] for side, letter in zip(sides, "uv", strict=True))
    return line([before], [after]), sizes


def _factored(shape: Shape, factors: Sequence[tuple[int, int, str]], letter: str) -> Iterator[str]:
    """The identifiers of each dim; a dim that has no factors in common with the other side has one of its own."""
    start = 1
    for place, size in enumerate(shape):
        if size == 1:
            yield "1"
            continue
        stop = start * size
        found = [name for low, high, name in factors if start <= low and high <= stop]
        yield f"({' '.join(found)})" if len(found) > 1 else found[0] if found else f"{letter}{place}^"
        start = stop
