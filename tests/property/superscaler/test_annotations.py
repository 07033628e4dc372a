"""What is derived from shapes is true for every shape."""

from __future__ import annotations

import itertools
import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.superscaler.annotation import Annotation, resolve
from engines.superscaler.operators.check import degree
from engines.superscaler.operators.shapes import broadcast, reduction, view
from engines.superscaler.operators.table import Call

FACTORS = st.lists(st.sampled_from([1, 2, 2, 3, 4, 5]), min_size=1, max_size=6)


@st.composite
def views(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Two shapes of equally many elements: the same factors, fused differently; shuffled, so that some do not fit."""
    factors = draw(FACTORS)

    def fused(values: list[int]) -> tuple[int, ...]:
        cuts = sorted(draw(st.sets(st.integers(1, len(values)), max_size=len(values))))
        edges = [0, *[cut for cut in cuts if cut < len(values)], len(values)]
        return tuple(math.prod(values[a:b]) for a, b in itertools.pairwise(edges))

    other = draw(st.permutations(factors)) if draw(st.booleans()) else factors
    return fused(factors), fused(list(other))


def part(whole: np.ndarray, dims, name: str, index: int, count: int) -> np.ndarray:
    place = next((place for place, dim in enumerate(dims) if dim[:1] == (name,)), None)
    if place is None:
        return whole
    return np.split(whole, count, axis=place)[index]


@settings(max_examples=150, deadline=None)
@given(views())
def test_a_view_of_a_part_is_the_part_of_the_view(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    before, after = shapes
    text, sizes = view(Call((before,), (after,)))
    annotation = resolve(text, [before], [after], sizes=sizes)
    whole = np.arange(math.prod(before)).reshape(before)
    for name in annotation.splittable():
        count = degree(annotation.sizes[name])
        for index in range(count):
            local = part(whole, annotation.inputs[0], name, index, count)
            assert local.shape == annotation.input_shape(0, {name: count})
            made = local.reshape(annotation.output_shape(0, {name: count}))
            np.testing.assert_array_equal(made, part(whole.reshape(after), annotation.outputs[0], name, index, count))


@settings(max_examples=150, deadline=None)
@given(views())
def test_a_view_that_only_fuses_keeps_every_leading_dim_splittable(shapes) -> None:
    before, _ = shapes
    after = (math.prod(before),)
    text, sizes = view(Call((before,), (after,)))
    annotation = resolve(text, [before], [after], sizes=sizes)
    leading = next((size for size in before if size > 1), 1)

    assert [annotation.sizes[name] for name in annotation.splittable()] == ([leading] if leading > 1 else [])


SHAPES = st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple)


@settings(max_examples=100, deadline=None)
@given(SHAPES, st.data())
def test_a_sum_is_the_sum_of_its_parts_and_broadcasting_repeats(shape: tuple[int, ...], data: st.DataObject) -> None:
    dims = sorted(data.draw(st.sets(st.integers(0, len(shape) - 1), min_size=1)))
    keep = data.draw(st.booleans())
    whole = np.random.default_rng(0).integers(-9, 9, shape)
    total = whole.sum(tuple(dims), keepdims=keep)
    call = Call((shape,), (total.shape,), {"dim": dims, "keepdim": keep})
    annotation = resolve(reduction("+")(call), [shape], [total.shape])
    for name in annotation.splittable():
        count = degree(annotation.sizes[name])
        parts = [
            part(whole, annotation.inputs[0], name, n, count).sum(tuple(dims), keepdims=keep) for n in range(count)
        ]
        place = annotation.output_dim(0, name)
        np.testing.assert_array_equal(sum(parts) if place is None else np.concatenate(parts, place), total)

    added = resolve(broadcast(Call((shape, total.shape), (shape,))), [shape, total.shape], [shape]) if keep else None
    if added is not None:
        for name in added.splittable():
            count = degree(added.sizes[name])
            for n in range(count):
                one, other = (part(tensor, added.inputs[k], name, n, count) for k, tensor in enumerate((whole, total)))
                np.testing.assert_array_equal(one + other, part(whole + total, added.outputs[0], name, n, count))


NAMES = st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=5, unique=True)


@settings(max_examples=100, deadline=None)
@given(NAMES, st.data())
def test_what_is_written_is_read_back(names: list[str], data: st.DataObject) -> None:
    sizes = {name: data.draw(st.integers(1, 6)) for name in names}
    frozen = frozenset(data.draw(st.sets(st.sampled_from(names))))
    gone = data.draw(st.sets(st.sampled_from(names))) - frozen
    fused = data.draw(st.booleans()) and len(names) > 1
    dims = ((*names[:2],), *((name,) for name in names[2:])) if fused else tuple((name,) for name in names)
    left = tuple(dim for dim in dims if not gone.intersection(dim) and not (fused and gone.intersection(names[:2])))
    lacking = {name for dim in dims if dim not in left for name in dim}
    annotation = Annotation(
        (dims,), (left,), dict(sorted(sizes.items())), frozen, dict.fromkeys(sorted(lacking - frozen), "sum")
    )
    shapes = (annotation.input_shape(0), annotation.output_shape(0))

    assert resolve(str(annotation), [shapes[0]], [shapes[1]], sizes=sizes) == annotation
