"""The sweep over ranks: a program evaluated with all its ranks as the axis of an array.

Items are taken in order, which is a topological order, and each is a few NumPy operations on every rank of its block
at once: start = max(end of the rank's lane, ends of what it waits for); a kernel adds its time, a collective takes the
latest of each group and adds its own. No rank is left out and none need be alike, so this is the evaluator for jitter
and stragglers on thousands of ranks.

A chain is compiled first: once the ranks of a group have met, they stay together until they meet others, so kernels and
collectives of one group after the first meeting are one addition per group (of the slowest member's times).

As in `sweep`, links are taken to be idle, and whether that was right is checked afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from emulation.evaluate.room import Flow, check_room, lone_duration, shared_links

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from emulation.evaluate.groups import Groups, Pricing
    from emulation.program import Block, Item, Part
    from emulation.topology import DirectedLink

    Times = NDArray[np.int64]
    """Picoseconds."""


@dataclass(frozen=True)
class _Step:
    """Add `before` on every rank; then, with `groups`, wait for the last of each group and add `after` to all of it."""

    before: Times | int
    groups: NDArray[np.int64] | None = None
    """Positions in the block, shape [groups, members]."""
    after: Times | int = 0
    """Shape [groups], or one for all."""


class RankSweep:
    """One evaluation; after `go`, `start` and `end` hold every item's times by rank of its block (pair, of transfers).

    Args:
        pricing: the program, its topology and costs.
    """

    def __init__(self, pricing: Pricing) -> None:
        self.pricing = pricing
        self.program = pricing.program
        self._links: Sequence[DirectedLink] = pricing.links
        self._priced = [pricing.of(item) for item in self.program.items]
        self._durations: dict[int, tuple[Times, Times]] = {}
        self._watched = self._find_watched()
        self._compiled: dict[tuple[object, ...], list[_Step] | None] = {}
        """By block and parts; a program keeps equal parts once, so their identity will do."""
        self._places: dict[tuple[object, ...], tuple[Any, Any]] = {}
        self._lanes: dict[str, Times] = {}
        self._flows: list[Flow] = []
        self.start: list[Times] = []
        self.end: list[Times] = []

    @property
    def picoseconds(self) -> int:
        """The step time: when the last rank is done."""
        return max((int(end.max(initial=0)) for end in self.end), default=0)

    def go(self) -> None:
        """Evaluate to the end.

        Raises:
            Contended: some link had to be shared; only the events can tell how.
            Stalled: a link without capacity holds an activity up.
        """
        for item in self.program.items:
            begin = self._ready(item)
            end = self._chain(item, begin.copy()) if item.parts else self._single(item, begin)
            self.start.append(begin)
            self.end.append(end)
            if item.stream:
                lane = self._lane(item.stream)
                for block in filter(None, (item.block, item.to)):
                    lane[_index(block)] = end
        check_room(self._flows, self._links)

    def rank_end(self) -> Times:
        """When each rank is done with everything, shape [ranks]."""
        found = np.zeros(self.program.mesh.size, dtype=np.int64)
        for item, end in zip(self.program.items, self.end, strict=True):
            for block in filter(None, (item.block, item.to)):
                found[_index(block)] = np.maximum(found[_index(block)], end)
        return found

    def timeline(self, item: Item) -> list[tuple[Times, Times]]:
        """Start and end of each part of a chain, by rank of its block."""
        found = []
        now = self.start[item.id]
        for part, groups in zip(item.parts, self._priced[item.id], strict=True):
            begin, now = now, now.copy()
            self._part(item.block, part, groups, now)
            found.append((begin, now))
        return found

    def _ready(self, item: Item) -> Times:
        """When each rank (or pair) has done what the item waits for."""
        ready = np.zeros(item.block.size, dtype=np.int64)
        for block in filter(None, (item.block, item.to)):
            if item.stream:
                np.maximum(ready, self._lane(item.stream)[_index(block)], out=ready)
            for number in item.after:
                earlier = self.program.items[number]
                for known in filter(None, (earlier.block, earlier.to)):
                    here, there = self._meet(block, known)
                    if here is not None:
                        ready[here] = np.maximum(ready[here], self.end[number][there])
        return ready

    def _lane(self, stream: str) -> Times:
        if stream not in self._lanes:
            self._lanes[stream] = np.zeros(self.program.mesh.size, dtype=np.int64)
        return self._lanes[stream]

    def _meet(self, block: Block, known: Block) -> tuple[Any, Any]:
        """Positions of the ranks that two blocks have in common, in each; (None, None) if there are none."""
        key = (block.fixed, known.fixed)
        if key not in self._places:
            if block == known:
                self._places[key] = (slice(None), slice(None))
            else:
                common, here, there = np.intersect1d(block.ranks, known.ranks, True, return_indices=True)
                self._places[key] = (here, there) if common.size else (None, None)
        return self._places[key]

    def _single(self, item: Item, begin: Times) -> Times:
        (groups,) = self._priced[item.id]
        fixed, moving = self._duration(groups)
        if id(groups) in self._watched:
            self._flows.append(Flow(groups, begin + fixed, begin + fixed + moving))
        return begin + fixed + moving

    def _chain(self, item: Item, now: Times) -> Times:
        steps = self._steps(item)
        if steps is None:
            for part, groups in zip(item.parts, self._priced[item.id], strict=True):
                self._part(item.block, part, groups, now, record=True)
            return now
        for step in steps:
            now += step.before
            if step.groups is not None:
                last = now[step.groups].max(axis=1) + step.after
                now[step.groups] = last[:, None]
        return now

    def _part(self, block: Block, part: Part, groups: Groups, now: Times, *, record: bool = False) -> None:
        """Do one part on all ranks of the block, in place."""
        fixed, moving = self._duration(groups)
        if part.kind != "collective":
            if record and id(groups) in self._watched:
                self._flows.append(Flow(groups, now + fixed, now + fixed + moving))
            now += fixed + moving
            return
        places = block.groups(part.axes)
        begin = now[places].max(axis=1) + fixed
        if record and id(groups) in self._watched:
            self._flows.append(Flow(groups, begin, begin + moving))
        now[places] = (begin + moving)[:, None]

    def _steps(self, item: Item) -> list[_Step] | None:
        """A chain as few steps; None if the times of its parts are needed one by one."""
        key = (item.block.fixed, id(item.parts))
        if key not in self._compiled:
            watched = any(id(groups) in self._watched for groups in self._priced[item.id])
            self._compiled[key] = None if watched else list(self._compile(item))
        return self._compiled[key]

    def _compile(self, item: Item) -> Iterator[_Step]:
        together: tuple[str, ...] = ()
        """Axes of the groups whose members are at the same time now, but for `pending`."""
        places: NDArray[np.int64] | None = None
        before: Times | int = 0
        pending: Times = np.zeros(item.block.size, dtype=np.int64)
        after: Times = np.zeros(0, dtype=np.int64)
        for part, groups in zip(item.parts, self._priced[item.id], strict=True):
            duration = sum(self._duration(groups))
            if part.kind != "collective":
                pending = pending + duration
            elif part.axes == together and places is not None:
                after = after + pending[places].max(axis=1) + duration
                pending = np.zeros_like(pending)
            else:
                if places is not None:
                    yield _Step(before, places, after)
                together, places, before = part.axes, item.block.groups(part.axes), pending
                after, pending = np.broadcast_to(duration, len(places)), np.zeros_like(pending)
        if places is not None:
            yield _Step(before, places, after)
        if pending.any():
            yield _Step(pending)

    def _duration(self, groups: Groups) -> tuple[Times, Times]:
        """Fixed and moving time of every group, on idle links."""
        if id(groups) not in self._durations:
            known = {id(cost): lone_duration(cost, self._links) for cost in groups.costs}
            both = np.array([known[id(cost)] for cost in groups.costs], dtype=np.int64).reshape(-1, 2)
            self._durations[id(groups)] = (both[:, 0], both[:, 1])
        return self._durations[id(groups)]

    def _find_watched(self) -> set[int]:
        """Parts that may share a link with others at the same time.

        Everything on one lane (a rank and a stream) happens one after another. So a link is safe if all that use it
        have a rank and the stream in common, and only the parts on other links need be watched.
        """
        streams: dict[int, set[str]] = {}
        for item in self.pricing.kinds:
            for groups in self._priced[item.id]:
                # What takes no lane is taken to be on one of its own each time.
                streams.setdefault(id(groups), set()).add(item.stream or f"item {item.id}")
        priced = (groups for item in self.pricing.kinds for groups in self._priced[item.id])
        distinct = list({id(groups): groups for groups in priced}.values())
        found = shared_links(distinct, [streams[id(groups)] for groups in distinct], self.program.mesh.size)
        return {id(groups) for groups in distinct if np.isin(groups.weights.link, found).any()}


def _index(block: Block) -> Any:
    """The ranks of a block, as a slice where they follow one another (a view is cheaper than a copy)."""
    ranks = block.ranks
    if ranks[-1] - ranks[0] + 1 == len(ranks):
        return slice(int(ranks[0]), int(ranks[-1]) + 1)
    return ranks
