"""Any layouts of any tensor: the steps yield what the target says, and send no less than they must."""

import itertools
import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.superscaler.layout import Layout, Mesh
from engines.superscaler.redistribution import Crossing, between, lower_bound, pieces, received, sent_in_all, within
from engines.superscaler.redistribution.reference import carry_out, gathered, scattered
from engines.superscaler.redistribution.steps import lacked

MESHES = [(1,), (2,), (3,), (4,), (2, 2), (5,), (2, 3), (3, 2), (8,), (2, 4), (2, 2, 2), (3, 4), (4, 4), (1, 2, 1, 3)]


@st.composite
def layouts(draw, mesh: Mesh, rank: int, reductions: tuple[str, ...] = ("sum",)) -> Layout:
    """Every axis splits a dim, holds addends or repeats."""
    dims: list[list[int]] = [[] for _ in range(rank)]
    partial = []
    for axis in draw(st.permutations(range(len(mesh.shape)))):
        role = draw(st.integers(-2, rank - 1))
        if role >= 0:
            dims[role].append(axis)
        elif role == -2:
            partial.append(axis)
    reduction = draw(st.sampled_from(reductions)) if partial else "sum"
    return Layout(mesh, tuple(map(tuple, dims)), tuple(sorted(partial)), reduction)


def shape_for(draw, *ends: Layout) -> tuple[int, ...]:
    """The least sizes that divide in all layouts, times something odd."""
    parts = [[math.prod(end.degree(axis) for axis in axes) for axes in end.dims] for end in ends]
    return tuple(math.lcm(*sizes) * draw(st.sampled_from([1, 3])) for sizes in zip(*parts, strict=True))


def whole_values(shape: tuple[int, ...]) -> np.ndarray:
    return np.arange(math.prod(shape), dtype=float).reshape(shape) % 251 - 100


@st.composite
def same_mesh(draw) -> tuple[Layout, Layout, tuple[int, ...]]:
    rank = draw(st.integers(1, 4))
    mesh = Mesh(tuple(range(math.prod(shape := draw(st.sampled_from(MESHES))))), shape)
    source = draw(layouts(mesh, rank, ("sum", "max")))
    target = draw(layouts(mesh, rank))
    if source.reduction == "max":
        target = Layout(mesh, target.dims)
    return source, target, shape_for(draw, source, target)


@st.composite
def two_meshes(draw) -> tuple[Layout, Layout, tuple[int, ...]]:
    rank = draw(st.integers(1, 3))
    ends = []
    for _ in range(2):
        shape = draw(st.sampled_from(MESHES))
        devices = draw(st.permutations(range(math.prod(shape) + draw(st.integers(0, 3)))))
        mesh = Mesh(tuple(devices[: math.prod(shape)]), shape)
        ends.append(draw(layouts(mesh, rank)))
    return *ends, shape_for(draw, *ends)


@given(same_mesh(), st.integers(0, 3))
@settings(max_examples=150, deadline=None)
def test_steps_within_a_mesh_end_in_the_target(case, seed) -> None:
    source, target, shape = case
    whole = whole_values(shape)
    steps = within(source, target, shape, "fp32")
    parts = carry_out(steps, scattered(whole, source, seed), shape)
    assert np.array_equal(gathered(parts, target, shape), whole)
    assert sent_in_all(steps, shape) >= lower_bound(source, target, shape)
    for before, after in itertools.pairwise(steps):
        assert before.after == after.before
    if steps:
        assert steps[0].before.same(source, shape)
        assert steps[-1].after.same(target, shape)


@given(two_meshes(), st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_steps_between_meshes_end_in_the_target(case, seed) -> None:
    source, target, shape = case
    whole = whole_values(shape)
    steps = between(source, target, shape, "fp32")
    parts = carry_out(steps, scattered(whole, source, seed), shape)
    assert np.array_equal(gathered(parts, target, shape), whole)
    assert sent_in_all(steps, shape) >= lower_bound(source, target, shape)


@given(two_meshes())
@settings(max_examples=50, deadline=None)
def test_what_a_rank_lacks_is_what_it_receives(case) -> None:
    source, target, shape = case
    step = Crossing(source, target)
    assert lacked(step, shape) == max(received(step, shape).values())


@given(two_meshes())
@settings(max_examples=100, deadline=None)
def test_pieces_bring_every_addend_of_every_element_once(case) -> None:
    source, target, shape = case
    count = source.addend(source.mesh.devices[0])[1]
    seen = {device: np.zeros((count, *(stop - start for start, stop in box))) for device, box, _ in target.held(shape)}
    held = {device: (box, index) for device, box, (index, _) in source.held(shape)}
    for piece in pieces(source, target, shape):
        box, index = held[piece.source]
        assert index == piece.addend[0]
        assert all(a <= c and d <= b for (a, b), (c, d) in zip(box, piece.box, strict=True))
        corner = target.box(shape, piece.target)
        place = tuple(slice(a - c, b - c) for (a, b), (c, _) in zip(piece.box, corner, strict=True))
        seen[piece.target][(piece.addend[0], *place)] += 1
        if piece.source != piece.target and piece.target in held:
            mine, mine_index = held[piece.target]
            apart = any(b <= c or d <= a for (a, b), (c, d) in zip(mine, piece.box, strict=True))
            assert apart or mine_index != piece.addend[0], "what a rank has is not sent to it"
    copies: dict[tuple, np.ndarray] = {}
    for device, box, addend in target.held(shape):
        copies.setdefault((box, addend), seen[device])
        assert np.array_equal(copies[box, addend], seen[device])
    total = np.zeros((count, *shape))
    for (box, _), counts in copies.items():
        total[(slice(None), *(slice(*ends) for ends in box))] += counts
    assert np.array_equal(total, np.ones_like(total))
