"""What a fitted model still gets wrong, learned from its residuals and no further than they reach.

A simulator's parameters are fitted, and its residuals are not noise alone: rows that have something in common are off
together. Kennedy and O'Hagan (Bayesian Calibration of Computer Models, JRSS B 63, 2001) add a *discrepancy* to the
simulator, with a prior that says it is probably small. Here it is linear in a few columns that the caller names (a
group of rows, or a quantity such as pipelines that share a host), each with a normal prior around zero:

    log(measured / simulated) = Z u + noise,    u_j ~ N(0, scale_j^2)

so that a column of few rows moves little (the best linear unbiased prediction of a random effect; Robinson, Statistical
Science 6, 1991), and one that a new row does not have says nothing about it. Noise has Student's t tails, fitted by
reweighting: one run that went wrong does not move the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence

DEGREES = 2.0
"""Of freedom of the noise."""
ROUNDS = 20

Columns = "Mapping[Hashable, tuple[float, float]]"
"""Of one row: name -> (its value there, scale of the prior). Columns that are not named are zero."""


@dataclass(frozen=True)
class Discrepancy:
    """Posterior means of the effects."""

    effects: Mapping[Hashable, float]

    def of(self, columns: Mapping[Hashable, tuple[float, float]]) -> float:
        """Expected log(measured / simulated) of a row."""
        return sum(self.effects.get(name, 0.0) * value for name, (value, _) in columns.items())


def fit_discrepancy(
    rows: Sequence[Mapping[Hashable, tuple[float, float]]], residuals: Sequence[float], noise: float
) -> Discrepancy:
    """Effects of the columns of some rows.

    Args:
        rows: of each row, name of a column -> (value, scale of its prior).
        residuals: log(measured / simulated) of each row; shape (rows,).
        noise: scale of what is left, in logarithms.
    """
    import numpy as np

    scales = {name: scale for row in rows for name, (_, scale) in row.items()}
    names = list(scales)
    if not names:
        return Discrepancy({})
    design = np.array([[row.get(name, (0.0, 0.0))[0] for name in names] for row in rows])
    found, precision = np.asarray(residuals, dtype=float), np.diag([1 / scales[name] ** 2 for name in names])
    weight, effects = np.ones(len(found)), np.zeros(len(names))
    for _ in range(ROUNDS):
        weighted = design * (weight / noise**2)[:, None]
        effects = np.linalg.solve(weighted.T @ design + precision, weighted.T @ found)
        weight = (DEGREES + 1) / (DEGREES + ((found - design @ effects) / noise) ** 2)
    return Discrepancy(dict(zip(names, effects.tolist(), strict=True)))
