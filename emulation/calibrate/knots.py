"""From a raw sweep to a table with few knots.

A sweep has noise, and more points than a profile should hold. Knots lie on a geometric grid of sizes (a linear one
would spend nearly all of them on large messages); their times minimise the sum of the absolute *relative* errors of
the line through them (an absolute fit is off by half for small messages and does not notice). How many: the fewest
whose cross-validated error, averaged over octaves of size, is within 2 % of the best.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from emulation.calibrate.residuals import FEWEST, out_of_fold, stretches
from emulation.collectives import CollectiveTable, TablePoint
from emulation.cost import tables

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy import float64
    from numpy.typing import NDArray

    from emulation.figures import Grade
    from emulation.wiring import LinkKind

    Floats = NDArray[float64]

COUNTS = (3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Numbers of knots that are tried."""
FOLDS = 5
ROUNDS = 12
"""Of reweighting, which turns least squares into least absolute errors."""
NEAR = 1e-3
"""Relative error below which all are weighted alike."""
GOOD_ENOUGH = 1.02


def fit_knots(sizes: Sequence[float], seconds: Sequence[float], *, count: int | None = None) -> list[tuple[int, float]]:
    """Knots (bytes, seconds) through a sweep; bytes strictly rising, seconds never falling.

    Args:
        sizes: bytes of each row, in any order, repeats allowed; shape (rows,).
        seconds: time of each row; shape (rows,).
        count: how many knots to aim for; by cross-validation if not given.

    Raises:
        ValueError: there are no rows, or some are not positive.
    """
    import numpy as np

    x, y = np.asarray(sizes, dtype=float), np.asarray(seconds, dtype=float)
    if not len(x) or len(x) != len(y) or (x <= 0).any() or (y <= 0).any():
        raise ValueError("a sweep needs rows of a positive size and a positive time each")
    order = np.lexsort((y, x))
    x, y = x[order], y[order]
    knots, times = _fitted(x, y, count or _best_count(x, y))
    return [(int(knot), float(time)) for knot, time in zip(knots, times, strict=True)]


def fit_table(
    op: str,
    ranks: int,
    link: LinkKind,
    rows: Sequence[tuple[float, float]],
    *,
    grade: Grade,
    source: str,
    hosts: int = 1,
) -> CollectiveTable:
    """A profile's table from rows of (bytes, seconds), with what readings of it were off by in cross-validation.

    Raises:
        ValueError: there are no rows, or some are not positive.
    """
    rows = sorted(rows)
    head: dict[str, Any] = {"op": op, "ranks": ranks, "hosts": hosts, "link": link, "grade": grade, "source": source}
    whole = _table(head, fit_knots([size for size, _ in rows], [time for _, time in rows]))

    def predict(seen: Sequence[int], unseen: Sequence[int]) -> list[float]:
        some = [rows[index] for index in seen]
        knots = fit_knots([size for size, _ in some], [time for _, time in some], count=len(whole.points))
        return [tables.at(_table(head, knots), rows[index][0]) for index in unseen]

    if len(rows) < FEWEST:
        return whole
    found = out_of_fold(len(rows), predict)
    logs = [math.log(time / guess) for (_, time), guess in zip(rows, found, strict=True)]
    return whole.model_copy(update={"residuals": stretches([size for size, _ in rows], logs)})


def _table(head: dict[str, Any], knots: Sequence[tuple[int, float]]) -> CollectiveTable:
    # Profiles hold quantities with their unit; repr keeps every digit.
    points = [TablePoint.model_validate({"bytes": f"{size} B", "time": f"{time!r} s"}) for size, time in knots]
    return CollectiveTable.model_validate(head | {"points": points})


def _best_count(x: Floats, y: Floats) -> int:
    import numpy as np

    distinct = len(np.unique(x))
    counts = [count for count in COUNTS if count <= distinct] or [distinct]
    if distinct < 2 * FOLDS:
        return distinct
    # Neighbours go to different folds, so that every fold has rows of all sizes.
    fold = np.arange(len(x)) % FOLDS
    errors = [_held_out_error(x, y, fold, count) for count in counts]
    return next(count for count, error in zip(counts, errors, strict=True) if error <= GOOD_ENOUGH * min(errors))


def _held_out_error(x: Floats, y: Floats, fold: Any, count: int) -> float:
    """Mean over octaves of the mean relative error of rows that were left out."""
    import numpy as np

    error = np.empty(len(x))
    for number in range(FOLDS):
        out = fold == number
        knots, times = _fitted(x[~out], y[~out], count)
        error[out] = np.abs(np.interp(x[out], knots, times) / y[out] - 1)
    octave = np.floor(np.log2(x / x[0]) + 1e-9)
    return float(np.mean([error[octave == number].mean() for number in np.unique(octave)]))


def _fitted(x: Floats, y: Floats, count: int) -> tuple[Floats, Floats]:
    """Knots and their times; x rising."""
    import numpy as np
    from scipy.linalg import solve
    from scipy.optimize import isotonic_regression

    knots = _grid(np.unique(x), count)
    if len(knots) == 1:
        return knots, np.array([float(np.median(y))])
    hats = _hats(knots, x) / y[:, None]
    weight = np.ones(len(x))
    for _ in range(ROUNDS):
        # Every knot is a row's size, so the normal equations are well-conditioned (and ten times as fast as an SVD).
        weighted = hats * weight[:, None]
        times = solve(weighted.T @ weighted, weighted.T @ weight, assume_a="pos")
        weight = 1 / np.sqrt(np.maximum(np.abs(1 - hats @ times), NEAR))
    times = np.maximum(times, y.min())
    return knots, np.asarray(isotonic_regression(times).x)


def _grid(sizes: Floats, count: int) -> Floats:
    """The sizes of the sweep that are nearest to a geometric grid."""
    import numpy as np

    if count >= len(sizes):
        return sizes
    wanted = np.geomspace(sizes[0], sizes[-1], max(2, count))
    nearest = np.abs(np.log(sizes[:, None] / wanted)).argmin(axis=0)
    knots: Floats = sizes[np.unique(nearest)]
    return knots


def _hats(knots: Floats, x: Floats) -> Floats:
    """Weight of each knot at each x under linear interpolation; shape (rows, knots)."""
    import numpy as np

    right = np.clip(np.searchsorted(knots, x), 1, len(knots) - 1)
    part = (x - knots[right - 1]) / (knots[right] - knots[right - 1])
    hats = np.zeros((len(x), len(knots)))
    rows = np.arange(len(x))
    hats[rows, right - 1], hats[rows, right] = 1 - part, part
    return hats
