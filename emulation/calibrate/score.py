"""How good predictions were, once measurements are there.

The scores answer five different questions:

* how far off, and in which direction? the mean signed error, (predicted - measured) / measured;
* how far off as a rule? mean (MAPE), median, 90th percentile and maximum of its absolute value;
* is the order right? Kendall's tau-b (Kendall 1945);
* what does it cost to believe it? *regret*: how much worse the plan that was predicted best is than the best one;
* is the claimed uncertainty honest? the share of measurements inside the claimed bands, due to be about 80 %.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import mean, median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

CLAIMED_COVERAGE = 0.8


@dataclass(frozen=True)
class Pair:
    """A prediction and the measurement of the same thing."""

    predicted: float
    measured: float
    """Not zero: errors are relative."""
    band: tuple[float, float] | None = None
    """Where four measurements of five were claimed to lie; None if nothing was claimed."""
    choice: str = ""
    """Pairs of one non-empty choice are alternatives of which one would be picked."""

    @property
    def error(self) -> float:
        """Signed relative error; positive when the prediction is too high."""
        return (self.predicted - self.measured) / self.measured

    @property
    def covered(self) -> bool | None:
        """Whether the measurement lies in the claimed band; None if none was claimed."""
        return None if self.band is None else self.band[0] <= self.measured <= self.band[1]


@dataclass(frozen=True)
class Score:
    """Scores of some pairs; errors, regret and coverage are fractions."""

    count: int
    bias: float
    """Mean signed error."""
    mape: float
    median: float
    p90: float
    worst: float
    tau: float | None
    """Kendall's tau-b of predicted against measured; None for fewer than two distinct values."""
    regret: float | None
    """Of the choices, the worst: measured value of what was predicted best against the best; None without choices."""
    coverage: float | None
    """Share of measurements inside the claimed bands; None if no band was claimed."""


def score(pairs: Sequence[Pair], *, larger_is_better: bool = False) -> Score:
    """The scores of at least one pair.

    Raises:
        ValueError: there is no pair.
    """
    from numpy import percentile

    if not pairs:
        raise ValueError("no pairs to score")
    errors = [abs(pair.error) for pair in pairs]
    covered = [pair.covered for pair in pairs if pair.covered is not None]
    return Score(
        count=len(pairs),
        bias=mean(pair.error for pair in pairs),
        mape=mean(errors),
        median=median(errors),
        p90=float(percentile(errors, 90)),
        worst=max(errors),
        tau=_tau(pairs),
        regret=_regret(pairs, larger_is_better),
        coverage=sum(covered) / len(covered) if covered else None,
    )


def _tau(pairs: Sequence[Pair]) -> float | None:
    predicted, measured = [pair.predicted for pair in pairs], [pair.measured for pair in pairs]
    if len(set(predicted)) < 2 or len(set(measured)) < 2:
        return None
    from scipy.stats import kendalltau

    return float(kendalltau(predicted, measured).statistic)


def _regret(pairs: Sequence[Pair], larger_is_better: bool) -> float | None:
    choices: dict[str, list[Pair]] = {}
    for pair in pairs:
        if pair.choice:
            choices.setdefault(pair.choice, []).append(pair)
    found = [_regret_of(plans, larger_is_better) for plans in choices.values() if len(plans) > 1]
    return max(found, default=None)


def _regret_of(plans: Sequence[Pair], larger_is_better: bool) -> float:
    """Of equally good predictions the worst plan counts: nothing tells them apart."""
    if larger_is_better:
        believed = max(plan.predicted for plan in plans)
        picked = min(plan.measured for plan in plans if plan.predicted == believed)
        return max(plan.measured for plan in plans) / picked - 1
    believed = min(plan.predicted for plan in plans)
    picked = max(plan.measured for plan in plans if plan.predicted == believed)
    return picked / min(plan.measured for plan in plans) - 1
