"""Scores of predictions as they are shown, the same wherever they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from emulation.calibrate.score import Score
    from harness.judging.predictions import Family


def cells(score: Score | Family) -> tuple[str, ...]:
    """Bias, MAPE, median, p90, worst, tau, regret and coverage; empty where there is none."""

    def percent(value: float | None, digits: int = 1) -> str:
        return "" if value is None else f"{100 * value:.{digits}f} %"

    errors = (score.mape, score.median, score.p90, score.worst)
    tau = "" if score.tau is None else f"{score.tau:.2f}"
    bias = f"{100 * score.bias:+.1f} %"
    return (bias, *map(percent, errors), tau, percent(score.regret), percent(score.coverage, 0))
