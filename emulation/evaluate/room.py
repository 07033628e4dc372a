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


MOST_TRIED = 16
"""Ranks of a link's smallest group that are tried as the one that all its users have in common."""


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


def shared_links(parts: Sequence[Groups], streams: Sequence[set[str]], ranks: int) -> Times:
    """Links that several groups may use at the same time, rising.

    A link is safe if all who use it have one stream and a rank in common: what a rank does on one stream happens one
    after another. Of each link, the ranks of the smallest group that uses it are tried.

    Args:
        parts: the groups of every distinct part.
        streams: of each part, those it is done on.
        ranks: how many there are.
    """
    import numpy as np

    part = np.concatenate([np.full(len(p.weights.link), n) for n, p in enumerate(parts)] or [np.zeros(0, np.int64)])
    if not part.size:
        return part.astype(np.int64)
    group = np.concatenate([p.weights.group for p in parts])
    links, link = np.unique(np.concatenate([p.weights.link for p in parts]), return_inverse=True)
    # Which group of a part a rank belongs to; sender and receiver of a transfer belong to the same.
    belongs = np.full((len(parts), ranks, 2), -1, dtype=np.int64)
    for number, p in enumerate(parts):
        for member in range(p.ranks.shape[1]):
            sides = belongs[number, p.ranks[:, member]]
            sides[np.arange(len(sides)), (sides[:, 0] >= 0).astype(int)] = np.arange(len(p.ranks))
            belongs[number, p.ranks[:, member]] = sides
    names = {name: number for number, name in enumerate(sorted(set().union(*streams)))}
    lane = np.array([names[next(iter(found))] if len(found) == 1 else -1 for found in streams])
    least, most = np.full(len(links), len(names)), np.full(len(links), -1)
    np.minimum.at(least, link, lane[part])
    np.maximum.at(most, link, lane[part])
    size = np.array([p.ranks.shape[1] for p in parts])
    smallest = np.lexsort((size[part], link))
    first = smallest[np.searchsorted(link[smallest], np.arange(len(links)))]
    safe = np.zeros(len(links), dtype=bool)
    for member in range(min(MOST_TRIED, int(size.max()))):
        candidate = np.array(
            [
                parts[p].ranks[g, member % size[p]]
                for p, g in zip(part[first].tolist(), group[first].tolist(), strict=True)
            ]
        )
        # A rank of the smallest group, for each link; smaller groups are tried from the start again.
        there = (belongs[part, candidate[link]] == group[:, None]).any(axis=1)
        missing = np.bincount(link[~there], minlength=len(links))
        safe |= missing == 0
    shared: Times = links[~(safe & (least == most) & (least >= 0))]
    return shared


def _by_users(parts: Iterable[Groups]) -> dict[tuple[tuple[int, int], ...], list[tuple[int, list[int]]]]:
    """Links by who uses them: ((part, how many of its groups), ...) -> [(link, those groups), ...]."""
    import numpy as np

    known = list(parts)
    if not known:
        return {}
    part = np.concatenate([np.full(len(p.weights.link), n) for n, p in enumerate(known)])
    group = np.concatenate([p.weights.group for p in known])
    links, link = np.unique(np.concatenate([p.weights.link for p in known]), return_inverse=True)
    counts = np.zeros((len(links), len(known)), dtype=np.int64)
    np.add.at(counts, (link, part), 1)
    kinds, kind = np.unique(counts, axis=0, return_inverse=True)
    order = np.lexsort((group, part, link))
    starts = np.searchsorted(link[order], np.arange(len(links) + 1))
    users = [tuple((id(known[n]), int(c)) for n, c in enumerate(row) if c) for row in kinds]
    found: dict[tuple[tuple[int, int], ...], list[tuple[int, list[int]]]] = {user: [] for user in users}
    for place, number in enumerate(kind.reshape(-1).tolist()):
        mine = order[starts[place] : starts[place + 1]]
        found[users[number]].append((int(links[place]), group[mine].tolist()))
    return found


def _apart(flows: Iterable[Flow]) -> bool:
    """Whether no two flows were under way at once, in any of their groups: enough, and cheap to see."""
    spans = sorted((int(flow.start.min()), int(flow.end.max())) for flow in flows)
    return all(end <= start for (_, end), (start, _) in pairwise(spans))
