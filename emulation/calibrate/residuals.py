"""From cross-validated residuals to the quantiles that a band is claimed from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from emulation.residuals import Residuals

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

FEWEST = 9
"""Rows of a stretch; of nine, the smallest and the largest have four of five new ones between them."""
WIDEST = 4.0
"""Rows of this many times the work still belong to one stretch, once it has the fewest."""
FOLDS = 5


def stretches(work: Sequence[float], residuals: Sequence[float], *, fewest: int = FEWEST) -> list[Residuals]:
    """Quantiles of residuals by work.

    Args:
        work: of each row: bytes, or FLOP; shape (rows,).
        residuals: ln(measured / predicted) of each row, predicted without it; shape (rows,).
        fewest: rows of a stretch; fewer than these in all make one stretch.

    Raises:
        ValueError: there are no rows, or not one residual for each.
    """
    import numpy as np

    size, log = np.asarray(work, dtype=float), np.asarray(residuals, dtype=float)
    if not len(size) or len(size) != len(log):
        raise ValueError("residuals need rows, and each row one residual")
    order = np.argsort(size, kind="stable")
    size, log = size[order], log[order]
    found: list[Residuals] = []
    for first, last in _cuts(size.tolist(), fewest):
        # The (m + 1) p-th order statistic: what a new exchangeable row exceeds with probability 1 - p.
        low, high = np.quantile(log[first:last], (0.1, 0.9), method="weibull")
        found.append(
            Residuals(
                least=float(size[first]),
                most=float(size[last - 1]),
                q10=min(0.0, float(low)),
                q90=max(0.0, float(high)),
                count=last - first,
            )
        )
    return found


def out_of_fold(
    rows: int, predict: Callable[[Sequence[int], Sequence[int]], Sequence[float]], *, folds: int = FOLDS
) -> list[float]:
    """Predictions of every row by a model that has not seen it.

    Args:
        rows: how many there are; those whose numbers are a multiple of `folds` apart are left out together.
        predict: (numbers of the rows to fit, numbers of the rows to predict) -> predictions.
        folds: at most this many fits.
    """
    folds = min(folds, rows)
    found = [0.0] * rows
    for fold in range(folds):
        out = list(range(fold, rows, folds))
        values = predict([row for row in range(rows) if row % folds != fold], out)
        for row, value in zip(out, values, strict=True):
            found[row] = value
    return found


def _cuts(size: Sequence[float], fewest: int) -> list[tuple[int, int]]:
    """(first, one past last) of each stretch; equal work stays together, and a short rest joins the one before."""
    cuts = [0]
    for index in range(1, len(size)):
        enough = index - cuts[-1] >= fewest and len(size) - index >= fewest
        if enough and size[index] > WIDEST * size[cuts[-1]] and size[index] > size[index - 1]:
            cuts.append(index)
    return list(zip(cuts, [*cuts[1:], len(size)], strict=True))
