"""Masks: whatever is cut up makes up the whole, and nothing else does."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.superscaler.vtensor import VTensor, covers, gap


@st.composite
def cut_up(draw, shape: list[int] | None = None) -> tuple[VTensor, list[VTensor]]:
    """A sub-tensor, and pieces of it: split along dims and into addends, again and again."""
    shape = shape or draw(st.lists(st.sampled_from([6, 7, 12]), min_size=1, max_size=3))
    whole = VTensor("x", tuple((0, size) for size in shape))
    parts = [whole]
    for _ in range(draw(st.integers(0, 5))):
        chosen = parts.pop(draw(st.integers(0, len(parts) - 1)))
        count = draw(st.sampled_from([2, 3]))
        dim = draw(st.integers(-1, len(shape) - 1))
        length = 0 if dim < 0 else chosen.box[dim][1] - chosen.box[dim][0]
        parts += chosen.split(dim, count) if length and length % count == 0 else chosen.divide(count)
    return whole, parts


@given(cut_up())
def test_pieces_make_up_the_whole(case) -> None:
    whole, parts = case
    assert gap([*parts, *parts[:2]], whole.box) == ""
    for one in parts:
        assert sum(other.intersects(one) for other in parts) == 1


@given(cut_up(), st.integers(0, 99))
def test_a_missing_piece_is_missed(case, number) -> None:
    whole, parts = case
    parts.pop(number % len(parts))
    assert "missing" in gap(parts, whole.box)


@given(cut_up(), st.integers(0, 99))
def test_what_comes_twice_is_found(case, number) -> None:
    whole, parts = case
    extra = parts[number % len(parts)].divide(2)[number % 2]
    assert not covers([*parts, extra], whole.box)


@given(cut_up([6, 12]), cut_up([6, 12]))
def test_masks_meet_where_they_share_an_element_of_an_addend(one, other) -> None:
    shape = [stop for _, stop in one[0].box]
    for a in one[1]:
        for b in other[1]:
            counts = np.zeros(shape)
            counts[tuple(slice(*ends) for ends in a.box)] += 1
            counts[tuple(slice(*ends) for ends in b.box)] += 1
            shares = max(a.interval[0], b.interval[0]) < min(a.interval[1], b.interval[1])
            assert a.intersects(b) == b.intersects(a) == bool((counts == 2).any() and shares)


def test_what_no_mask_says_is_refused() -> None:
    with pytest.raises(ValueError, match="no addend 2 of 2"):
        VTensor("x", ((0, 1),), (2, 2))
    with pytest.raises(ValueError, match="has elements"):
        VTensor("x", ((1, 1),))
    with pytest.raises(ValueError, match="cannot be split into 4"):
        VTensor("x", ((0, 6),)).split(0, 4)
    with pytest.raises(ValueError, match="neither holds"):
        VTensor("x", ((0, 6),), (1, 2)).intersection(VTensor("x", ((0, 6),), (1, 3)))
    assert VTensor("x", ((0, 6),), (0, 2)).intersection(VTensor("x", ((3, 9),))) == VTensor("x", ((3, 6),), (0, 2))
