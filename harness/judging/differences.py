"""Two runs side by side: which values differ, by how much, and whether by more than chance.

Values are paired by target, cell, metric and labels. Where both sides have four samples or more, the two-sided
Mann-Whitney U test says how likely so large a difference is without a cause (asv uses the same test at 0.002).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.judging.observations import observe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.judging.observations import Observation
    from harness.records import Record

SIGNIFICANCE = 0.002
LEAST_SAMPLES = 4

Place = tuple[str, str, str, str, tuple[tuple[str, str], ...]]


@dataclass(frozen=True)
class Difference:
    """One value in two runs."""

    place: str
    """Where the value is: target, cell, labels."""
    metric: str
    unit: str
    kind: str
    left: float | None
    """Median in the first run; None where it has no such value."""
    right: float | None
    ratio: float | None
    """Second over first."""
    p: float | None
    """Of the Mann-Whitney U test; None with too few samples."""

    @property
    def word(self) -> str:
        """What to say of it: `same`, `differs`, `within noise`, `too few samples`, `only in ...`."""
        if self.left is None or self.right is None:
            return "only in the second" if self.left is None else "only in the first"
        if self.left == self.right:
            return "same"
        if self.kind == "emulated":
            return "differs"
        if self.p is None:
            return "too few samples"
        return "differs" if self.p < SIGNIFICANCE else "within noise"


def between(first: Sequence[Record], second: Sequence[Record]) -> list[Difference]:
    """Every value of either run, in the order of the first and then of the second."""
    left = {_place(o): o for o in observe(first)}
    right = {_place(o): o for o in observe(second)}
    return [_difference(left.get(place), right.get(place)) for place in dict.fromkeys([*left, *right])]


def _place(observation: Observation) -> Place:
    labels = tuple(sorted(observation.labels.items()))
    return (str(observation.target), observation.record.spec, observation.record.cell, observation.metric, labels)


def _difference(left: Observation | None, right: Observation | None) -> Difference:
    one = left or right
    assert one is not None
    words = [str(one.target), one.record.cell, *(f"{k}={v}" for k, v in sorted(one.labels.items()))]
    a = left.figure.value if left else None
    b = right.figure.value if right else None
    return Difference(
        place=" ".join(words),
        metric=one.metric,
        unit=one.unit,
        kind=str(one.kind),
        left=a,
        right=b,
        ratio=b / a if a and b is not None else None,
        p=_p(left, right),
    )


def _p(left: Observation | None, right: Observation | None) -> float | None:
    if left is None or right is None or min(len(left.samples), len(right.samples)) < LEAST_SAMPLES:
        return None
    from scipy.stats import mannwhitneyu

    return float(mannwhitneyu(left.samples, right.samples).pvalue)
