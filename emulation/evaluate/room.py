"""Idle links: how long an activity takes when nobody shares with it, and whether that was so.

Both sweeps assume idle links while they go, and see here afterwards whether the assumption held: what moved over a link
at the same time must have had room together, or the sweep's answer is not taken (`Contended`).
"""

from __future__ import annotations

from itertools import pairwise
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple

from emulation.evaluate.fluid import Stalled
from emulation.units import PICOSECONDS_PER_SECOND

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from emulation.cost import Cost
    from emulation.evaluate.groups import Groups
    from emulation.topology import DirectedLink

    Times = NDArray[np.int64]
    """Picoseconds."""

ROOM = 1 - 1e-9
"""Part of a link that several activities may fill and still count as having room; beyond it, the events decide."""


class Contended(Exception):
    """Activities shared a link that could not carry all of them at full rate."""

    def __init__(self, link: DirectedLink) -> None:
        super().__init__(f"activities share {link.name}, which cannot carry all of them at full rate")


def lone_rate(cost: Cost, links: Sequence[DirectedLink]) -> float:
    """Bytes of progress per second with every link to itself; infinity without links and cap."""
    load: dict[int, float] = {}
    for link, weight in cost.weights:
        load[link] = load.get(link, 0.0) + weight
    return min([cost.cap, *(links[link].capacity / weight for link, weight in load.items())])


def lone_duration(cost: Cost, links: Sequence[DirectedLink]) -> tuple[int, int]:
    """Picoseconds of fixed time, and of moving bytes, with every link to itself; rounded as the events round.

    Raises:
        Stalled: a link without capacity.
    """
    if not cost.work:
        return cost.fixed, 0
    rate = lone_rate(cost, links)
    if rate <= 0:
        dead = [links[link].name for link, _ in cost.weights if links[link].capacity <= 0]
        raise Stalled(f"no progress: link {', '.join(dead) or 'unknown'} has no capacity")
    return cost.fixed, round(cost.work / rate * PICOSECONDS_PER_SECOND)


def busy_times(
    flows: Sequence[tuple[int, int, int]], costs: Sequence[Cost], links: Sequence[DirectedLink]
) -> dict[int, int]:
    """Picoseconds in which anything moved over each link, once it is sure that all could move at full rate.

    Args:
        flows: (start, end, task) of everything that moved.
        costs: of each task.
        links: that the weights of costs number.

    Raises:
        Contended: at some instant the activities on a link wanted more than it has.
    """
    users: dict[int, list[tuple[int, int, float]]] = {}
    rates: dict[int, float] = {}
    for start, end, task in flows:
        cost = costs[task]
        rate = rates.get(id(cost))
        if rate is None:
            rate = rates[id(cost)] = lone_rate(cost, links)
        for link, weight in cost.weights:
            users.setdefault(link, []).append((start, end, weight * rate))
    return {link: _busy(uses, links[link]) for link, uses in sorted(users.items())}


def _busy(uses: list[tuple[int, int, float]], link: DirectedLink) -> int:
    uses.sort(key=itemgetter(0, 1))
    total = since = until = 0
    moving: list[tuple[int, float]] = []
    for start, end, load in uses:
        if start >= until:
            total += until - since
            since, until, moving = start, end, [(end, load)]
            continue
        moving = [(other, share) for other, share in moving if other > start]
        moving.append((end, load))
        if len(moving) > 1 and sum(share for _, share in moving) > link.capacity * ROOM:
            raise Contended(link)
        until = max(until, end)
    return total + until - since


class Flow(NamedTuple):
    """Bytes that one part of a program moved once, in every group."""

    groups: Groups
    start: Times
    """Of each group, shape [groups]."""
    end: Times


def check_room(flows: Sequence[Flow], links: Sequence[DirectedLink]) -> None:
    """See that what moved over a link at the same time had room together, for all groups of all flows.

    Raises:
        Contended: it had not.
    """
    of: dict[int, list[Flow]] = {}
    for flow in flows:
        of.setdefault(id(flow.groups), []).append(flow)
    for users, where in _by_users([found[0].groups for found in of.values()]).items():
        parts = [of[part] for part, _ in users]
        if all(count == 1 for _, count in users) and _apart(flow for part in parts for flow in part):
            continue
        for link, groups in where:
            place, intervals = 0, []
            for part, (_, count) in zip(parts, users, strict=True):
                for group in groups[place : place + count]:
                    cost = part[0].groups.costs[group]
                    load = lone_rate(cost, links) * sum(weight for number, weight in cost.weights if number == link)
                    intervals += [(int(flow.start[group]), int(flow.end[group]), load) for flow in part]
                place += count
            _busy(intervals, links[link])


def _by_users(parts: Iterable[Groups]) -> dict[tuple[tuple[int, int], ...], list[tuple[int, list[int]]]]:
    """Links by who uses them: ((part, how many of its groups), ...) -> [(link, those groups), ...]."""
    users: dict[int, list[tuple[int, int]]] = {}
    for part in parts:
        for group, cost in enumerate(part.costs):
            for link in dict(cost.weights) if cost.work else ():
                users.setdefault(link, []).append((id(part), group))
    found: dict[tuple[tuple[int, int], ...], list[tuple[int, list[int]]]] = {}
    for link, uses in users.items():
        counts: dict[int, int] = {}
        for part_id, _ in uses:
            counts[part_id] = counts.get(part_id, 0) + 1
        found.setdefault(tuple(counts.items()), []).append((link, [group for _, group in uses]))
    return found


def _apart(flows: Iterable[Flow]) -> bool:
    """Whether no two flows were under way at once, in any of their groups: enough, and cheap to see."""
    spans = sorted((int(flow.start.min()), int(flow.end.max())) for flow in flows)
    return all(end <= start for (_, end), (start, _) in pairwise(spans))
