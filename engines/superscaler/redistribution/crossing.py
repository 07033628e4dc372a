"""From a layout on one mesh to a layout on another: the way between pipeline stages.

One transfer leads across; what is done before it on the source's mesh (make sums, so that fewer addends cross) and
after it on the target's (gather what was sent once, in parts, instead of sending it to every rank) depends on prices.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

from engines.superscaler.layout import Layout
from engines.superscaler.redistribution.paths import within
from engines.superscaler.redistribution.prices import DEFAULT
from engines.superscaler.redistribution.steps import Crossing, Step

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engines.superscaler.redistribution.prices import Prices


def between(
    source: Layout, target: Layout, shape: tuple[int, ...], dtype: str, prices: Prices | None = None
) -> tuple[Step | Crossing, ...]:
    """The cheapest steps from one layout to another, on any two sets of devices (which may share some).

    Args:
        source: What there is.
        target: What is wanted. On the same devices in the same order this is `within`.
        shape: Of the whole tensor.
        dtype: A key of `graph.BYTES`.
        prices: Cost of a step; bytes and hops by default.

    Returns:
        Steps on the source's mesh, a crossing, steps on the target's mesh.

    Raises:
        ValueError: a dim does not divide, or addends are of a kind that the target cannot hold.
    """
    return _between(source, target, tuple(shape), dtype, prices or DEFAULT)


@lru_cache(maxsize=65536)
def _between(
    source: Layout, target: Layout, shape: tuple[int, ...], dtype: str, prices: Prices
) -> tuple[Step | Crossing, ...]:
    if source.mesh.refined(target.mesh) is not None:
        return within(source, target, shape, dtype, prices)

    def cost(steps: tuple[Step | Crossing, ...]) -> float:
        return sum(prices(step, shape, dtype) for step in steps)

    ways = []
    for leave in _departures(source, target, shape):
        there = within(source, leave, shape, dtype, prices)
        for land in _arrivals(target, shape):
            back = within(land, target, shape, dtype, prices)
            ways.append((cost(there) + cost(back), len(ways), there, Crossing(leave, land), back))
    best, steps = math.inf, ()
    for spent, _, there, crossing, back in sorted(ways, key=lambda way: way[:2]):
        if spent < best and (whole := spent + prices(crossing, shape, dtype)) < best:
            best, steps = whole, (*there, crossing, *back)
    return steps


def _departures(source: Layout, target: Layout, shape: tuple[int, ...]) -> Iterator[Layout]:
    """What may be sent: the source, and the source summed up, on every rank or scattered along a dim.

    What comes from several ranks is added, so parts of a maximum are put together before.
    """
    maximum = source.partial and source.reduction == "max"
    if not maximum and not (source.partial and target.partial and source.reduction != target.reduction):
        yield source
    if source.partial:
        yield Layout(source.mesh, source.dims)
        yield from _scattered(Layout(source.mesh, source.dims), source.partial, shape)


def _arrivals(target: Layout, shape: tuple[int, ...]) -> Iterator[Layout]:
    """What may be received: the target, and the target with its copies cut up along a dim."""
    yield target
    taken = {*target.partial, *(axis for axes in target.dims for axis in axes)}
    copies = tuple(axis for axis in range(len(target.mesh.shape)) if axis not in taken and target.degree(axis) > 1)
    for axes in dict.fromkeys([*((axis,) for axis in copies), copies] if copies else []):
        yield from _scattered(target, axes, shape)


def _scattered(layout: Layout, axes: tuple[int, ...], shape: tuple[int, ...]) -> Iterator[Layout]:
    """The layout with a dim split by `axes` as well: the first dims that divide."""
    parts = math.prod(layout.degree(axis) for axis in axes)
    for dim, size in enumerate(layout.local_shape(shape)):
        if size % parts == 0:
            dims = (*layout.dims[:dim], layout.dims[dim] + axes, *layout.dims[dim + 1 :])
            yield Layout(layout.mesh, dims, layout.partial, layout.reduction)
