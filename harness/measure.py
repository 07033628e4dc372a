"""Taking samples, and saying what they are worth.

A repeated measurement is not one number. Its median is robust against the odd slow repetition, and the order
statistics around the median give a confidence interval that assumes nothing about the distribution: of `n`
independent samples, the number that fall below the true median is binomial(n, 1/2), so the interval between the
k-th smallest and the k-th largest covers the median with probability

    1 - 2 * P(binomial(n, 1/2) <= k - 1)

(Conover, Practical Nonparametric Statistics, 3rd ed., section 3.2). With fewer than six samples even the whole range
falls short of 95 %; the summary then gives the range and says what it does cover.
"""

from __future__ import annotations

import gc
import math
import resource
import time
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Summary:
    """The median of some samples and how well they pin it down, in the samples' unit."""

    median: float
    low: float
    high: float
    n: int
    method: str
    """How (low, high) was found, and what it covers."""


def summarise(samples: Sequence[float], *, confidence: float = CONFIDENCE) -> Summary:
    """Median and distribution-free confidence interval.

    Raises:
        ValueError: there are no samples, or one is NaN.
    """
    ordered = sorted(samples)
    n = len(ordered)
    if not n:
        raise ValueError("no samples to summarise")
    if any(math.isnan(s) for s in ordered):
        raise ValueError("cannot summarise samples that hold NaN")
    if n == 1:
        return Summary(ordered[0], ordered[0], ordered[0], 1, "single sample, no interval")
    k, below = _rank(n, confidence)
    coverage = 1.0 - 2.0 * below
    if k == 0:
        method = f"range of {n} samples, covers the median with {100 * coverage:.4g} %"
    else:
        method = f"order statistics {k} and {n - k + 1} of {n}, cover the median with {100 * coverage:.4g} %"
    k = max(k, 1)
    return Summary(float(median(ordered)), ordered[k - 1], ordered[n - k], n, method)


def _rank(n: int, confidence: float) -> tuple[int, float]:
    """The largest k whose interval still has the confidence, and P(binomial(n, 1/2) <= k - 1).

    k is 0 where even the range falls short; the probability is then that of k = 1.
    """
    tail = (1.0 - confidence) / 2.0
    k, below = 0, 0.0
    # Nothing that a double can show lies further than 20 standard deviations below the middle.
    start = max(0, math.floor(n / 2 - 10.0 * math.sqrt(n)))
    for i in range(start, n // 2):
        following = below + _probability(n, i)
        if following > tail:
            break
        k, below = i + 1, following
    return (k, below) if k else (0, _probability(n, 0))


def _probability(n: int, i: int) -> float:
    """P(binomial(n, 1/2) = i)."""
    if n <= 1000:
        return float(math.comb(n, i) / 2**n)
    return math.exp(math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) - n * math.log(2.0))


def sample(action: Callable[[], object], *, warmup: int, runs: int) -> list[tuple[float, float]]:
    """(start, seconds) of each repetition on `time.perf_counter`, after the warm-up.

    Python's cyclic garbage collector is held off while the clock runs, and catches up in between.
    """
    for _ in range(warmup):
        action()
    taken: list[tuple[float, float]] = []
    collects = gc.isenabled()
    try:
        for _ in range(runs):
            gc.disable()
            begin = time.perf_counter()
            action()
            seconds = time.perf_counter() - begin
            if collects:
                gc.enable()
            taken.append((begin, seconds))
    finally:
        if collects:
            gc.enable()
    return taken


def peak_memory() -> int:
    """Peak resident bytes of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
