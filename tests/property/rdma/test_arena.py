"""The arena against the plainest allocator there is: a list that says of every byte whether it is taken."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engines.rdma.arena import Arena
from engines.rdma.device import OutOfMemory

SIZE = 96
ALIGNMENTS = [1, 2, 8, 16]


class ArenaAgainstByteMap(RuleBasedStateMachine):
    """Both must choose the lowest aligned place that is free, or both none."""

    @initialize(start=st.integers(0, 40))
    def begin(self, start):
        self.start = start
        self.arena = Arena(start, start + SIZE)
        self.taken = [False] * SIZE
        self.live = {}

    @rule(nbytes=st.integers(0, SIZE + 1), align=st.sampled_from(ALIGNMENTS))
    def take(self, nbytes, align):
        place = self.lowest(max(nbytes, 1), align)
        if place is None:
            with pytest.raises(OutOfMemory, match=f"for {nbytes} more"):
                self.arena.take(nbytes, align)
            return
        assert self.arena.take(nbytes, align) == place
        self.live[place] = max(nbytes, 1)
        self.mark(place, True)

    def lowest(self, nbytes, align):
        for index in range(SIZE - nbytes + 1):
            if (self.start + index) % align == 0 and not any(self.taken[index : index + nbytes]):
                return self.start + index
        return None

    def mark(self, place, taken):
        first = place - self.start
        self.taken[first : first + self.live[place]] = [taken] * self.live[place]

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def give(self, data):
        place = data.draw(st.sampled_from(sorted(self.live)))
        self.arena.give(place)
        self.mark(place, False)
        del self.live[place]

    @rule(offset=st.integers(-1, SIZE + 41))
    def give_what_is_not_there(self, offset):
        if offset not in self.live:
            with pytest.raises(ValueError, match="not handed out"):
                self.arena.give(offset)

    @rule()
    def reset(self):
        self.arena.reset()
        self.taken = [False] * SIZE
        self.live = {}

    @invariant()
    def counts_agree(self):
        if hasattr(self, "arena"):
            assert self.arena.used == sum(self.taken)
            free = "".join(" " if taken else "." for taken in self.taken).split()
            assert self.arena.largest == max(map(len, free), default=0)


TestArenaAgainstByteMap = ArenaAgainstByteMap.TestCase


@given(st.lists(st.integers(0, 300), min_size=1, max_size=20))
def test_an_iteration_that_asks_for_the_same_sizes_finds_the_same_places(sizes):
    arena = Arena(0, 2**13)
    first = [arena.take(nbytes, 8) for nbytes in sizes]
    for offset in reversed(first):
        arena.give(offset)
    assert arena.largest == 2**13
    assert [arena.take(nbytes, 8) for nbytes in sizes] == first


def test_a_shortage_says_how_much_and_whether_it_is_scattered():
    arena = Arena(0, 100)
    places = [arena.take(20) for _ in range(5)]
    with pytest.raises(OutOfMemory, match=r"^the arena of 100 bytes is 30 bytes too small for 30 more$"):
        arena.take(30)
    arena.give(places[1])
    arena.give(places[3])
    with pytest.raises(OutOfMemory, match="is 10 bytes too small for 30 more: 40 are free, at most 20 in one piece"):
        arena.take(30)


@pytest.mark.parametrize(("nbytes", "align"), [(-1, 1), (1, 0), (1, 3), (1, -8)])
def test_nonsense_is_refused(nbytes, align):
    with pytest.raises(ValueError, match=r"cannot allocate|power of two"):
        Arena(0, 10).take(nbytes, align)
    with pytest.raises(ValueError, match="0 <= start <= end"):
        Arena(10, 9)
