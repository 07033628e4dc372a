"""Measured collective tables: what to expect at sizes and group sizes nobody timed.

**Sizes.** Between two knots time is linear in *bytes*: every stretch has a latency and a bandwidth of its own, as the
alpha-beta model has one of each for all sizes. On NCCL's all-reduce tables of 2, 4 and 8 A100 (half of the sizes used,
the other half predicted) this is better than interpolating the logarithms, which bends small messages too far down:

=======================  ============  =============
between knots            all sizes     up to 16 MiB
=======================  ============  =============
linear in bytes          0.4 %         4.2 %
linear in the logarithm  0.4 %         5.3 %
PCHIP in the logarithm   0.5 %         5.1 %
=======================  ============  =============

Below the first knot it continues the chord from that knot to one at least four times as large (two neighbours alone
would magnify their noise), and never below zero; above the last, the chord from a quarter of it.

**Group sizes.** A ring of n ranks takes ``2 (n-1) alpha + A(S) + 2 (n-1)/n B(S)``: after taking off the steps' latency
(``alpha`` is the library's constant), time is linear in 1/n at every size, so that two measured group sizes tell A and
B. The answer is held within what a ring can do: more ranks do not take less time, and leaving ranks away saves no more
than their share of the traffic, nor do further ranks cost more than their share of the steps.

Outside the knots, and for a group size without a table, a reading is worth one grade less.

**Bands.** Within its knots a table claims what readings of it were off by in cross-validation, by size; outside them
twice that. For a group size without a table nothing was cross-validated: there the band reaches over what other
assumptions would give (time, or bus bandwidth, geometric in log n; no step latency), beside the tables' own error.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from emulation.figures import weaker, weakest
from emulation.residuals import spread_at

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from emulation.collectives import CollectiveOption, CollectiveTable
    from emulation.figures import Grade
    from emulation.residuals import Spread
    from emulation.wiring import LinkKind

SPREAD = 4
"""How many times apart in size two knots must be for their chord to be continued beyond them."""


@dataclass(frozen=True)
class Reading:
    """What tables say of one collective."""

    seconds: float
    """On idle links."""
    latency: float
    """The part of it that no byte pays for; seconds."""
    grade: Grade
    method: str
    """`table`, or `tables of 2 and 8 ranks`."""
    spread: Spread | None
    """Half-widths of the band in log space; None for a table without residuals."""
    processor: float = 0.0
    """Part of a core that each rank keeps busy meanwhile."""


def at(table: CollectiveTable, nbytes: float) -> float:
    """Seconds for `nbytes`; exact at the knots, and never less for more bytes."""
    points = table.points
    if nbytes <= points[0].bytes:
        floor = latency(table)
        return floor + (points[0].time - floor) * nbytes / points[0].bytes
    if nbytes > points[-1].bytes:
        return points[-1].time + (nbytes - points[-1].bytes) * _last_slope(table)
    right = bisect_left(points, nbytes, key=lambda point: point.bytes)
    low, high = points[right - 1], points[right]
    return low.time + (high.time - low.time) * (nbytes - low.bytes) / (high.bytes - low.bytes)


def latency(table: CollectiveTable) -> float:
    """Seconds that a collective without bytes would take: the first chord continued to zero bytes."""
    first = table.points[0]
    far = next((p for p in table.points if p.bytes >= SPREAD * first.bytes), table.points[-1])
    if far is first:
        return 0.0
    return max(0.0, first.time - first.bytes * (far.time - first.time) / (far.bytes - first.bytes))


def covers(table: CollectiveTable, nbytes: float) -> bool:
    """Whether `nbytes` lies within the sizes that were timed."""
    return table.points[0].bytes <= nbytes <= table.points[-1].bytes


def read(
    tables: Iterable[CollectiveTable],
    op: str,
    shape: tuple[int, int],
    link: LinkKind,
    nbytes: float,
    *,
    step: float = 0.0,
) -> Reading | None:
    """What the tables say of a collective over a group of this shape.

    Args:
        tables: of one profile.
        op: `all-reduce`, ...
        shape: (ranks, hosts they are spread over equally).
        link: kind of the farthest link within the group.
        nbytes: buffer of one rank.
        step: latency of one step of a ring on such links, in seconds (`ring_step`).

    Returns:
        None where no table fits: another group size takes at least two tables, all on one host or all with as many
        ranks on each host.
    """
    ranks, hosts = shape
    fitting = [t for t in tables if t.op == op and t.link == link and _alike((t.ranks, t.hosts), shape)]
    exact = next((t for t in fitting if (t.ranks, t.hosts) == (ranks, hosts)), None)
    if exact is not None:
        grade, spread = _grade([exact], nbytes), _spread(exact, nbytes)
        return Reading(at(exact, nbytes), latency(exact), grade, "table", spread, exact.processor)
    if len(fitting) < 2 or op == "send":
        return None
    low, high = _neighbours(sorted(fitting, key=lambda table: table.ranks), ranks)
    return _unseen(low, high, ranks, nbytes, 2 * step if op == "all-reduce" else step)


def _unseen(low: CollectiveTable, high: CollectiveTable, ranks: int, nbytes: float, rank: float) -> Reading:
    """For a group size that neither table has."""
    ends = (low.ranks, at(low, nbytes)), (high.ranks, at(high, nbytes))
    seconds = between(*ends, ranks, rank)
    floor = between((low.ranks, latency(low)), (high.ranks, latency(high)), ranks, rank)
    own = [_spread(table, nbytes) for table in (low, high)]
    spread = None
    if own[0] and own[1]:
        others = [between(*ends, ranks, 0.0), *_geometric(*ends, ranks)]
        faster = max(0.0, *(math.log(seconds / other) for other in others))
        slower = max(0.0, *(math.log(other / seconds) for other in others))
        spread = math.hypot(faster, own[0][0], own[1][0]), math.hypot(slower, own[0][1], own[1][1])
    names = f"tables of {low.ranks} and {high.ranks} ranks"
    return Reading(seconds, min(floor, seconds), weaker(_grade([low, high], nbytes)), names, spread)


def between(low: tuple[int, float], high: tuple[int, float], ranks: int, rank: float) -> float:
    """Seconds for a group of `ranks`, from those of two other group sizes.

    Args:
        low: (ranks, seconds) of the smaller group.
        high: the same of the larger group.
        ranks: the group size asked for, at least 2.
        rank: latency that one more rank adds, in seconds.
    """
    (few, fast), (many, slow) = low, high
    weight = (1 / ranks - 1 / few) / (1 / many - 1 / few)
    steps = [(n - 1) * rank for n in (few, many, ranks)]
    found = (fast - steps[0]) * (1 - weight) + (slow - steps[1]) * weight + steps[2]
    if ranks < few:
        return min(max(found, fast * _traffic(ranks) / _traffic(few)), fast)
    if ranks > many:
        return min(max(found, slow), slow * (ranks - 1) / (many - 1))
    return min(max(found, min(fast, slow)), max(fast, slow))


def ring_step(options: Iterable[CollectiveOption], link: LinkKind) -> float:
    """Latency of one step of a ring over such links: the middle one of the library's protocols; seconds.

    Which protocol was timed is not known; the result hardly depends on it.
    """
    steps = [option.step[link] for option in options if option.algorithm == "ring" and link in option.step]
    return median(steps) if steps else 0.0


def _geometric(low: tuple[int, float], high: tuple[int, float], ranks: int) -> tuple[float, float]:
    """Seconds if time, or bus bandwidth, were geometric in log n."""
    (few, fast), (many, slow) = low, high
    weight = math.log(ranks / few) / math.log(many / few)
    time = fast ** (1 - weight) * slow**weight
    busy = (fast / _traffic(few)) ** (1 - weight) * (slow / _traffic(many)) ** weight * _traffic(ranks)
    return time, busy


def _traffic(ranks: int) -> float:
    return (ranks - 1) / ranks


def _alike(left: tuple[int, int], right: tuple[int, int]) -> bool:
    """Whether two groups differ in one way only: in ranks on their one host, or in hosts of as many ranks."""
    if left[1] == 1 or right[1] == 1:
        return left[1] == right[1]
    return left[0] * right[1] == right[0] * left[1]


def _neighbours(rising: Sequence[CollectiveTable], ranks: int) -> tuple[CollectiveTable, CollectiveTable]:
    """The two tables on either side of a group size, or the two nearest on one side."""
    place = bisect_left([table.ranks for table in rising], ranks)
    place = min(max(place, 1), len(rising) - 1)
    return rising[place - 1], rising[place]


def _grade(tables: Sequence[CollectiveTable], nbytes: float) -> Grade:
    grade = weakest(table.grade for table in tables)
    return grade if all(covers(table, nbytes) for table in tables) else weaker(grade)


def _spread(table: CollectiveTable, nbytes: float) -> Spread | None:
    return spread_at(table.residuals, nbytes) if table.residuals else None


def _last_slope(table: CollectiveTable) -> float:
    """Seconds per byte above the last knot."""
    last = table.points[-1]
    near = next((p for p in reversed(table.points) if p.bytes * SPREAD <= last.bytes), table.points[0])
    if near is last:
        return last.time / last.bytes
    return (last.time - near.time) / (last.bytes - near.bytes)
