"""Communication over lower bound for all pairs of layouts, beside a search that forgets which device holds what."""

import heapq
import itertools
import math
from statistics import geometric_mean

import pytest

from engines.superscaler.layout import Layout, Mesh
from engines.superscaler.redistribution import between, lower_bound, sent_in_all, within

CLASSES = [(4, 2, 54), (8, 2, 190), (4, 3, 140), (8, 3, 680)]
"""Devices, dims of the tensor, pairs of different layouts whose target has no addends."""
SHAPES = {2: (4096, 4096), 3: (256, 256, 256)}


def grids(devices: int, components: int):
    """All ways to write a number of devices as copies x addends x parts of each dim."""
    if components == 1:
        yield (devices,)
        return
    for first in range(1, devices + 1):
        if devices % first == 0:
            for rest in grids(devices // first, components - 1):
                yield (first, *rest)


def in_order(grid: tuple[int, ...]) -> list[list[int]]:
    """Axes of two devices for every component, in row-major order."""
    axes = iter(range(math.prod(grid).bit_length()))
    return [list(itertools.islice(axes, degree.bit_length() - 1)) for degree in grid]


def aligned(grid: tuple[int, ...], mesh: Mesh) -> Layout:
    """The grid's layout with devices in row-major order, on a mesh of axes of two."""
    runs = [tuple(run) for run in in_order(grid)]
    return Layout(mesh, tuple(runs[2:]), runs[1])


def pairs(devices: int, rank: int):
    mesh = Mesh(tuple(range(devices)), (2,) * (devices.bit_length() - 1))
    for one, other in itertools.product(grids(devices, rank + 2), repeat=2):
        if one != other and other[1] == 1:
            yield one, other, aligned(one, mesh), aligned(other, mesh)


def unaligned(one: tuple[int, ...], other: tuple[int, ...], shape: tuple[int, ...]) -> tuple[list, list]:
    """The published rule, written anew here: cheapest path over grids, devices following from the edges taken.

    An edge moves a factor from one component to another: the minor devices of the one become the minor ones of the
    other. Returns the devices' axes in every component at the end, and those that the target's row-major order has.
    """
    elements = math.prod(shape)
    order = itertools.count()
    heap = [(0.0, next(order), one, ())]
    done = set()
    while heap:
        cost, _, grid, path = heapq.heappop(heap)
        if grid == other:
            break
        if grid in done:
            continue
        done.add(grid)
        held = elements / math.prod(grid[2:])
        for start, end in itertools.permutations(range(len(grid)), 2):
            # Copies become parts; addends copies or parts; parts copies or parts of another dim.
            if end == 1:
                continue
            factor = 2
            while grid[start] % factor == 0:
                after = list(grid)
                after[start] //= factor
                after[end] *= factor
                share = (factor - 1) * held / factor
                price = {0: 0.0, 1: 2 * share if end == 0 else share}.get(start, factor * share if end == 0 else share)
                heapq.heappush(heap, (cost + price + 1, next(order), tuple(after), (*path, (start, end, factor))))
                factor *= 2
    runs = in_order(one)
    for start, end, factor in path:
        count = factor.bit_length() - 1
        runs[end] += runs[start][-count:]
        del runs[start][-count:]
    wanted = in_order(other)
    return [set(runs[0]), *runs[1:]], [set(wanted[0]), *wanted[1:]]


@pytest.mark.parametrize(("devices", "rank", "count"), CLASSES)
def test_all_pairs_of_layouts_stay_near_the_lower_bound(benchmark, devices, rank, count) -> None:
    cases, shape = list(pairs(devices, rank)), SHAPES[rank]
    assert len(cases) == count
    paths = benchmark.pedantic(
        lambda: [within(source, target, shape, "fp32") for _, _, source, target in cases], rounds=1, iterations=1
    )
    ratios = []
    for steps, (_, _, source, target) in zip(paths, cases, strict=True):
        least, sent = lower_bound(source, target, shape), sent_in_all(steps, shape)
        assert sent >= least
        assert (sent == 0) == (least == 0)
        ratios.append(sent / least if least else 1.0)
        replicated = Layout(source.mesh, ((),) * rank)
        by_way = any(step.after == replicated for step in steps[:-1])
        assert not by_way, f"{source} to {target} by way of full replication"
    lost = sum(end != wanted for end, wanted in (unaligned(one, other, shape) for one, other, _, _ in cases))
    benchmark.extra_info.update(
        pairs=count, geometric_mean=geometric_mean(ratios), largest=max(ratios), unaligned_rule_fails=lost
    )
    assert geometric_mean(ratios) <= 1.2
    assert max(ratios) <= 2.0
    assert lost >= 0.25 * count, "the rule without devices is what this is better than"


@pytest.mark.parametrize(("before", "after"), [(2, 4), (4, 2), (4, 4), (4, 8)])
def test_all_pairs_of_layouts_on_two_meshes_stay_near_the_lower_bound(benchmark, before, after) -> None:
    here = Mesh(tuple(range(before)), (2,) * (before.bit_length() - 1))
    there = Mesh(tuple(range(before, before + after)), (2,) * (after.bit_length() - 1))
    shape, ratios = SHAPES[2], []
    cases = [
        (aligned(one, here), aligned(other, there))
        for one, other in itertools.product(grids(before, 4), grids(after, 4))
        if other[1] == 1
    ]
    paths = benchmark.pedantic(
        lambda: [between(source, target, shape, "fp32") for source, target in cases], rounds=1, iterations=1
    )
    for steps, (source, target) in zip(paths, cases, strict=True):
        ratios.append(sent_in_all(steps, shape) / lower_bound(source, target, shape))
    benchmark.extra_info.update(pairs=len(ratios), geometric_mean=geometric_mean(ratios), largest=max(ratios))
    assert min(ratios) >= 1.0
    assert geometric_mean(ratios) <= 1.2
