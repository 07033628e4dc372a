"""Max-min fair sharing of links, by progressive filling.

Activities progress at rates x_f. A byte of progress of activity f uses w_fl of link l's capacity, and software may cap
x_f. All rates rise together from 0 until a link is full (or a cap is reached); whoever crosses it stays at that rate;
the others go on. The result is max-min fair: no rate can rise without lowering one that is not larger (Bertsekas,
Gallager: Data Networks, section 6.5.2).

`fill` is the reference, in plain Python; `fill_arrays` does the same with NumPy and pays off from some hundred
activities. They agree to rounding (tests hold them together).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Weights = "Sequence[tuple[int, float]]"
ARRAYS_FROM = 96
"""Activities from which the NumPy path is the faster one (measured on a 2-core machine)."""


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
    solver = fill_arrays if len(demands) >= ARRAYS_FROM else fill
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
    """The same with NumPy, over (activity, link) incidences; see `fair_rates`."""
    import numpy as np

    places = {link: place for place, link in enumerate(capacities)}
    owner = np.array([activity for activity, demand in enumerate(demands) for _ in demand], dtype=np.int64)
    link = np.array([places[number] for demand in demands for number, _ in demand], dtype=np.int64)
    weight = np.array([amount for demand in demands for _, amount in demand], dtype=np.float64)
    left = np.array(list(capacities.values()), dtype=np.float64)
    limit = np.array(caps, dtype=np.float64)
    rates = np.full(len(demands), np.inf)
    unfixed = np.ones(len(demands), dtype=bool)
    while unfixed.any():
        live = unfixed[owner]
        load = np.bincount(link[live], weight[live], minlength=len(left))
        share = np.full(len(left), np.inf)
        np.divide(left, load, out=share, where=load > 0)
        least = share.min(initial=np.inf)
        cap = limit[unfixed].min()
        if cap <= least:
            fixed = unfixed & (limit == cap)
        else:
            fixed = np.zeros_like(unfixed)
            fixed[owner[live & (share[link] == least)]] = True
        rates[fixed] = min(cap, least)
        touched = fixed[owner]
        used = weight[touched] * rates[owner[touched]]
        left = np.maximum(0.0, left - np.bincount(link[touched], used, minlength=len(left)))
        unfixed &= ~fixed
    return [float(rate) for rate in rates]
