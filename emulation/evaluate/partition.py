"""Which ranks, groups and links cannot be told apart: the coarsest equitable partition, by colour refinement.

Ranks start alike if their hardware is. Then, round by round until nothing changes: groups are alike if their members
are, at the same cost over alike links; ranks are alike if they belong to alike groups of everything; links are alike if
alike groups move the same amounts over them. (The first step of Weisfeiler and Leman; McKay: Practical graph
isomorphism, 1981.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from emulation.evaluate.groups import Groups, Incidences, Pricing
    from emulation.topology import DirectedLink

    Colours = NDArray[np.int64]
    """Class of each of some things, numbered from 0."""


class Partition:
    """Classes of the ranks, groups and links of a program.

    Args:
        pricing: the program, its topology and costs.
        distinct: the groups of every distinct part.
    """

    def __init__(self, pricing: Pricing, distinct: Sequence[Groups]) -> None:
        self._of = pricing.links
        kinds: dict[tuple[int, int], int] = {}
        held = pricing.scenario.pressure if pricing.scenario else lambda _: 0
        hardware = zip(map(id, pricing.models), map(held, pricing.program.mesh.devices), strict=True)
        start = [kinds.setdefault(kind, len(kinds)) for kind in hardware]
        self.ranks: Colours = np.array(start, dtype=np.int64)
        """Class of each rank."""
        links = [found.link for groups in distinct for found in (groups.weights, groups.traffic)]
        self._used = np.unique(np.concatenate([np.zeros(0, np.int64), *links]))
        """Links that anything moves over, rising."""
        patterns: dict[tuple[object, ...], tuple[Groups, _Moved]] = {}
        self._pattern_of: dict[int, int] = {}
        for groups in distinct:
            moved = _Moved(groups, self._used)
            alike, _ = patterns.setdefault(moved.pattern(groups), (groups, moved))
            self._pattern_of[id(groups)] = id(alike)
        self._patterns = list(patterns.values())
        """Parts that tell ranks apart in the same way are looked at once: most kernels, for one."""
        self._links = self._kinds()
        self._alike: dict[int, Colours] = {}
        self._refine()
        self._first = np.unique(self._links, return_index=True)[1]
        """Of each link class, the place of its first link."""

    def alike(self, groups: Groups) -> Colours:
        """Class of each group of a part, shape [groups], numbered by rising first member."""
        return self._alike[self._pattern_of[id(groups)]]

    def link_classes(self) -> list[tuple[DirectedLink, int]]:
        """For each link class its first link, and how many there are."""
        counts = np.bincount(self._links, minlength=0)
        numbers = self._used[self._first].tolist()
        return [(self._of[link], count) for link, count in zip(numbers, counts.tolist(), strict=True)]

    def folded(self, groups: Groups, moved: Incidences) -> list[tuple[tuple[int, float], ...]]:
        """For each class of groups, what they move together over one link of each link class that they use."""
        found: list[dict[int, float]] = [{} for _ in range(int(self.alike(groups).max(initial=-1)) + 1)]
        place = np.searchsorted(self._used, moved.link)
        classes = self._links[place]
        one = self._first[classes] == place if len(place) else np.zeros(0, dtype=bool)
        alike = self.alike(groups)[moved.group[one]]
        for kind, link, amount in zip(alike.tolist(), classes[one].tolist(), moved.amount[one].tolist(), strict=True):
            found[kind][link] = found[kind].get(link, 0.0) + amount
        return [tuple(sorted(amounts.items())) for amounts in found]

    def _kinds(self) -> Colours:
        kinds: dict[tuple[object, ...], int] = {}
        links = [self._of[number] for number in self._used.tolist()]
        found = [kinds.setdefault((link.kind, link.capacity), len(kinds)) for link in links]
        return np.array(found, dtype=np.int64)

    def _refine(self) -> None:
        counts = (0, 0)
        while True:
            signatures = []
            for groups, moved in self._patterns:
                alike = self._alike[id(groups)] = self._group_classes(groups, moved)
                self._split_ranks(groups, alike)
                signatures.append(moved.signature(alike, len(self._used)))
            self._links = _numbered(np.stack([self._links, *signatures], axis=1))
            # Classes are only ever split, so as many as before are the same as before.
            before, counts = counts, (self.ranks.max(initial=-1) + 1, self._links.max(initial=-1) + 1)
            if before == counts:
                return

    def _group_classes(self, groups: Groups, moved: _Moved) -> Colours:
        members = self.ranks[groups.ranks]
        if groups.action.kind != "transfer":
            members = np.sort(members, axis=1)
        over = moved.over(self._links, len(groups.ranks))
        return _numbered(np.concatenate([members, moved.price[:, None], over[:, None]], axis=1))

    def _split_ranks(self, groups: Groups, alike: Colours) -> None:
        met = np.full((len(self.ranks), 2), -1, dtype=np.int64)
        for side in range(groups.ranks.shape[1]):
            met[groups.ranks[:, side], 0] = alike
            # Sender and receiver of one transfer are not alike; the ranks of a collective are.
            met[groups.ranks[:, side], 1] = side if groups.action.kind == "transfer" else 0
        self.ranks = _numbered(np.concatenate([self.ranks[:, None], met], axis=1))


class _Moved:
    """What the groups of a part pay and move, as numbers that are equal for what is meant to be equal."""

    def __init__(self, groups: Groups, used: Colours) -> None:
        prices: dict[tuple[object, ...], int] = {}
        known: dict[int, int] = {}
        for c in groups.costs:
            if id(c) not in known:
                key = (c.fixed, c.work, c.cap, c.method, c.family, c.grade)
                known[id(c)] = prices.setdefault(key, len(prices))
        self.price: Colours = np.array([known[id(c)] for c in groups.costs], dtype=np.int64)
        """Groups that pay the same but for links have the same number."""
        self._group = groups.weights.group
        self._link = np.searchsorted(used, groups.weights.link)
        # Sums in another order differ in their last digits; what is equal to 12 is meant to be equal.
        digits = np.format_float_scientific
        kinds, inverse = np.unique(groups.weights.amount, return_inverse=True)
        names: dict[str, int] = {}
        number = [names.setdefault(digits(kind, precision=11), len(names)) for kind in kinds]
        self._amount = np.array(number, dtype=np.int64)[inverse]

    def pattern(self, groups: Groups) -> tuple[object, ...]:
        """Equal for parts whose groups are the same ranks and differ among themselves in the same way."""
        what = (groups.ranks, self.price, self._group, self._link, self._amount)
        return (groups.action.kind == "transfer", groups.ranks.shape, *(array.tobytes() for array in what))

    def over(self, links: Colours, count: int) -> Colours:
        """For each group, a number for the link classes it moves over and how much; shape [count]."""
        return _gathered(self._group, np.stack([links[self._link], self._amount], axis=1), count)

    def signature(self, alike: Colours, count: int) -> Colours:
        """For each used link, a number for the group classes that move over it and how much; shape [count]."""
        return _gathered(self._link, np.stack([alike[self._group], self._amount], axis=1), count)


def _gathered(owner: Colours, rows: Colours, count: int) -> Colours:
    """For each owner, a number for the multiset of its rows; equal multisets have equal numbers."""
    kind = _numbered(rows) if len(rows) else np.zeros(0, dtype=np.int64)
    order = np.lexsort((kind, owner))
    owner, kind = owner[order], kind[order]
    sets: dict[bytes, int] = {b"": 0}
    found = np.zeros(count, dtype=np.int64)
    ends = np.flatnonzero(np.diff(owner, append=-1)) + 1 if len(owner) else np.zeros(0, dtype=np.int64)
    begin = 0
    for end in ends.tolist():
        found[owner[begin]] = sets.setdefault(kind[begin:end].tobytes(), len(sets))
        begin = end
    return found


def _numbered(rows: Colours) -> Colours:
    """A number for each row, equal for equal rows, by rising first appearance."""
    _, first, inverse = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse.reshape(-1)]
