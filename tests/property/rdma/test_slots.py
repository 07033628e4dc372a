"""Slot layout, for any sizes."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from engines.rdma.placement import ALIGN, extent, lay_out

sizes = st.lists(st.integers(0, 2**33), min_size=1, max_size=50)


@given(sizes)
def test_slots_never_overlap_and_every_tail_is_an_aligned_word_inside_its_slot(sizes):
    slots = lay_out(sizes)
    assert [slot.nbytes for slot in slots] == sizes
    for slot in slots:
        assert slot.offset % ALIGN == 0
        assert slot.tail % 8 == 0
        assert slot.offset + slot.nbytes <= slot.tail < slot.offset + slot.nbytes + 8
        assert slot.offset + slot.span == slot.tail + 8
    for before, after in pairwise(slots):
        assert before.offset + before.span <= after.offset
    assert extent(slots) == slots[-1].offset + slots[-1].span
