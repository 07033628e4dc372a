"""Max-min fair sharing of links, by progressive filling.

Activities progress at rates x_f. A byte of progress of activity f uses w_fl of link l's capacity, and software may cap
x_f. All rates rise together from 0 until a link is full (or a cap is reached); whoever crosses it stays at that rate;
the others go on. The result is max-min fair: no rate can rise without lowering one that is not larger (Bertsekas,
Gallager: Data Networks, section 6.5.2).

`fill` is the reference, in plain Python; `fill_arrays` does the same with NumPy and pays off from some dozens of
activities (1,024 of them on 3,072 links: 1.7 ms instead of 200). They agree to rounding (tests hold them together).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Weights = "Sequence[tuple[int, float]]"
ARRAYS_FROM = 64
"""Uses of links by activities from which the NumPy path is the faster one (measured on a 2-core machine)."""


def fair_rates(
    capacities: Mapping[int, float], demands: Sequence[Sequence[tuple[int, float]]], caps: Sequence[float]
) -> list[float]:
    """Rate of each activity, by whichever path is faster for this many.

    Args:
        capacities: link -> units per second.
        demands: for each activity, (link, units per unit of progress); weights are positive.
        caps: for each activity, its greatest rate (infinity for none).

    Returns:
        Rates in units of progress per second; infinite for an activity without demands and cap.
    """
    solver = fill_arrays if sum(map(len, demands)) >= ARRAYS_FROM else fill
    return solver(capacities, demands, caps)


def fill(
    capacities: Mapping[int, float], demands: Sequence[Sequence[tuple[int, float]]], caps: Sequence[float]
) -> list[float]:
    """The reference; see `fair_rates`."""
    rates = [math.inf] * len(demands)
    left = dict(capacities)
    load = dict.fromkeys(left, 0.0)
    users: dict[int, list[int]] = {link: [] for link in left}
    for activity, demand in enumerate(demands):
        for link, weight in demand:
            load[link] += weight
            users[link].append(activity)
    count = {link: len(activities) for link, activities in users.items()}
    unfixed = dict.fromkeys(range(len(demands)))
    while unfixed:
        share, full = min(((left[link] / load[link], link) for link in left if count[link]), default=(math.inf, -1))
        cap = min(caps[activity] for activity in unfixed)
        if cap <= share:
            fixed = [activity for activity in unfixed if caps[activity] == cap]
        else:
            fixed = [activity for activity in users[full] if activity in unfixed]
        for activity in fixed:
            rates[activity] = min(cap, share)
            del unfixed[activity]
            for link, weight in demands[activity]:
                left[link] = max(0.0, left[link] - weight * rates[activity])
                load[link] -= weight
                count[link] -= 1
                if not count[link]:
                    load[link] = 0.0
    return rates


def fill_arrays(
    capacities: Mapping[int, float], demands: Sequence[Sequence[tuple[int, float]]], caps: Sequence[float]
) -> list[float]:
    """The same with NumPy, over (activity, link) incidences; see `fair_rates`.

    A link's share only rises while others are fixed, so every link that is the tightest for all of its users is settled
    in one round, and so is every activity whose cap is below all shares on its way: the rounds are as many as
    bottlenecks that depend on one another, and not as many as there are links.
    """
    import numpy as np

    places = {link: place for place, link in enumerate(capacities)}
    owner = np.repeat(np.arange(len(demands)), np.fromiter(map(len, demands), np.int64, len(demands)))
    pairs = [pair for demand in demands for pair in demand]
    link = np.fromiter((places[number] for number, _ in pairs), np.int64, len(pairs))
    weight = np.fromiter((amount for _, amount in pairs), np.float64, len(pairs))
    left = np.fromiter(capacities.values(), np.float64, len(capacities))
    rates = np.array(caps, dtype=np.float64)
    reach = np.empty(len(demands))
    while owner.size:
        share = np.full(len(left), np.inf)
        load = np.bincount(link, weight, minlength=len(left))
        np.divide(left, load, out=share, where=load > 0)
        first = np.flatnonzero(np.diff(owner, prepend=-1))
        moving = owner[first]
        reach[moving] = np.minimum(rates[moving], np.minimum.reduceat(share[link], first))
        tightest = reach[owner] == share[link]
        users, held = np.bincount(link), np.bincount(link[tightest], minlength=len(left))
        settled = np.zeros(len(demands), dtype=bool)
        settled[owner[held[link] == users[link]]] = True
        settled[moving] |= rates[moving] <= reach[moving]
        rates[settled] = reach[settled]
        gone = settled[owner]
        used = np.bincount(link[gone], weight[gone] * reach[owner[gone]], minlength=len(left))
        left = np.maximum(0.0, left - used)
        owner, link, weight = owner[~gone], link[~gone], weight[~gone]
    return [float(rate) for rate in rates]
