"""How samples are taken: warm, interleaved, robust against the odd slow one, and honest about drift.

A sweep runs its cases in turn, one sample of each a round and in another order every round, so that a slow second of
the machine costs each case one sample and no case all of its samples. What is reported is the median and the median
absolute deviation. A case whose last samples differ from its first by more than `DRIFT` is kept and flagged: the
machine changed under it (clock frequency, other load), so its figure describes no one state of it.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Labels = Mapping[str, Any]

WARMUPS = 5
DRIFT = 0.05
"""Relative change between the first and the last third of the samples above which a series is flagged."""
SHORTEST = 200e-6
"""Seconds that one sample should last at least, so that the clock's resolution and its call do not matter."""
MOST_REPEATS = 64


@dataclass(frozen=True)
class Series:
    """The samples of one case."""

    probe: str
    labels: dict[str, Any]
    """What was done: operator, sizes, number of processes."""
    samples: list[float]
    """Seconds of one execution, in the order taken."""
    repeats: int = 1
    """Executions that one sample is the mean of."""
    extra: dict[str, float] = field(default_factory=dict)
    """What else was seen, such as seconds of processor time."""

    @property
    def median(self) -> float:
        """Seconds."""
        return median(self.samples)

    @property
    def mad(self) -> float:
        """Median absolute deviation, seconds."""
        middle = self.median
        return median(abs(sample - middle) for sample in self.samples)

    @property
    def drift(self) -> float:
        """Median of the last third of the samples over that of the first, less one; 0 for fewer than six."""
        third = len(self.samples) // 3
        if third < 2:
            return 0.0
        return median(self.samples[-third:]) / median(self.samples[:third]) - 1

    @property
    def drifted(self) -> bool:
        """Whether the machine changed under this case."""
        return abs(self.drift) > DRIFT

    def to_json(self) -> dict[str, Any]:
        """Everything, with the summary that a reader wants first."""
        return {
            "probe": self.probe,
            "labels": self.labels,
            "median_s": self.median,
            "mad_s": self.mad,
            "drift": self.drift,
            "drifted": self.drifted,
            "repeats": self.repeats,
            "extra": self.extra,
            "samples_s": self.samples,
        }


@dataclass
class Case:
    """One thing to time."""

    labels: dict[str, Any]
    action: Callable[[], object]
    before: Callable[[], object] | None = None
    """Run before each sample, outside the clock; the action is then run once a sample."""
    executions: int = 1
    """How many of the thing one action does; a sample is the time of one of them."""
    repeats: int = 0
    """Actions a sample; 0: as many as fill `SHORTEST`."""


def sweep(
    probe: str,
    cases: Sequence[Case],
    *,
    rounds: int,
    meet: Callable[[], object] | None = None,
    warmups: int = WARMUPS,
    seed: int = 0,
) -> list[Series]:
    """Time all cases, interleaved.

    Args:
        probe: name of the sweep.
        cases: what to time.
        rounds: samples of each case.
        meet: called before every sample, to start together with other processes. A case must then say its `repeats`,
            since each process would find another number.
        warmups: untimed runs of each case.
        seed: of the order in which a round runs the cases; equal in all processes that `meet`.

    Returns:
        One series a case, in the order of the cases.
    """
    for case in cases:
        _prepare(case, warmups)
    order = list(range(len(cases)))
    shuffle = random.Random(seed)
    samples: list[list[float]] = [[] for _ in cases]
    for _ in range(rounds):
        shuffle.shuffle(order)
        for index in order:
            samples[index].append(_time(cases[index], meet))
    done = zip(cases, samples, strict=True)
    return [Series(probe, case.labels, taken, case.repeats * case.executions) for case, taken in done]


def _prepare(case: Case, warmups: int) -> None:
    if case.before:
        case.repeats = 1
    for _ in range(warmups):
        _time(case, None, repeats=1)
    if not case.repeats:
        once = _time(case, None, repeats=1) * case.executions
        case.repeats = max(1, min(MOST_REPEATS, round(SHORTEST / max(once, 1e-9))))


def _time(case: Case, meet: Callable[[], object] | None, *, repeats: int = 0) -> float:
    """Seconds of one execution, after whichever case ran before.

    Training, too, comes to an operator with caches full of another's data.
    """
    repeats = repeats or case.repeats
    if case.before:
        case.before()
    if meet:
        meet()
    action = case.action
    begin = time.perf_counter()
    for _ in range(repeats):
        action()
    return (time.perf_counter() - begin) / (repeats * case.executions)


def together(answers: Sequence[Sequence[Series]], processes: int) -> list[Series]:
    """The series of processes that worked side by side as one: each sample is the mean over the processes."""
    merged = []
    for parts in zip(*answers, strict=True):
        samples = [sum(values) / processes for values in zip(*(part.samples for part in parts), strict=True)]
        labels = parts[0].labels | {"processes": processes}
        merged.append(Series(parts[0].probe, labels, samples, parts[0].repeats))
    return merged


def joined(turns: Sequence[Sequence[Series]]) -> list[Series]:
    """Series of the same cases, taken in several turns, one after another."""
    return [
        Series(parts[0].probe, parts[0].labels, [s for part in parts for s in part.samples], parts[0].repeats)
        for parts in zip(*turns, strict=True)
    ]


def clock_resolution(samples: int = 1000) -> float:
    """Smallest step seen between two readings of `time.perf_counter`, seconds."""
    least = float("inf")
    for _ in range(samples):
        first = last = time.perf_counter()
        while last == first:
            last = time.perf_counter()
        least = min(least, last - first)
    return least
