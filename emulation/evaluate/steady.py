"""Steady state: many equal rounds from few.

Training repeats itself: after a pipeline has filled, each further micro-batch adds the same time. Where nobody shares
links, the time of n rounds is a max-plus linear map iterated, and its increments become periodic (Baccelli, Cohen,
Olsder, Quadrat: Synchronization and Linearity, 1992). So the time of a few counts tells that of many, once the
increments have been seen to repeat.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

REPEATS = 3
"""How often in a row the increments have to be the same before they are believed."""
LONGEST_PERIOD = 4
"""Rounds after which increments may repeat: an interleaved schedule has one for each of its chunks."""


class Extrapolated(NamedTuple):
    """The time of many rounds, and what it rests on."""

    picoseconds: int
    evaluated: int
    """The most rounds that were evaluated."""
    period: int
    """Rounds after which increments repeat; 0 if all rounds were evaluated."""


def extrapolate(picoseconds: Callable[[int], int], rounds: int, *, first: int = 1) -> Extrapolated:
    """The time of `rounds` rounds, evaluated for as few as it takes to see that increments repeat.

    Args:
        picoseconds: the time of a number of rounds, as evaluated.
        rounds: how many are asked for.
        first: rounds to begin with; for a pipeline, its stages.

    Returns:
        What evaluating all of them gives, to the picosecond, if the increments go on as they did.
    """
    times: list[int] = []
    for count in range(first, rounds + 1):
        times.append(picoseconds(count))
        steps = [later - earlier for earlier, later in pairwise(times)]
        for period in range(1, LONGEST_PERIOD + 1):
            seen = steps[-period * REPEATS :]
            if len(seen) == period * REPEATS and seen == seen[:period] * REPEATS:
                whole, part = divmod(rounds - count, period)
                return Extrapolated(times[-1] + whole * sum(seen[:period]) + sum(seen[:part]), count, period)
    return Extrapolated(times[-1] if times else picoseconds(rounds), rounds, 0)
