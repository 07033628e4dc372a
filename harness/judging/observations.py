"""What the records say, one value at a time.

A record holds a trial; judging and laying out work on single values and on the coordinates by which a reader finds
them: the labels the engine gave a measurement (`transport: shm`), the values of the sweep (`engine.model: bert-base`),
and any other field of the resolved spec. An `Observation` is one such value with its coordinates, its interval and
the words without which it must not be shown: measured or emulated, by which backend, on which hardware.

A ratio is only ever taken between two observations of the same target, and never between a measured and an emulated
one: "25 times faster" across two machines is not a speed-up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.loading.sweep import spelled
from harness.measure import summarise
from harness.records import Kind, Record, State

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from harness.spec import Scalar

RATIO_UNIT = "x"
SPECIAL_KEYS = ("cell", "backend", "hardware")
"""Coordinates that every record has, besides labels and spec paths."""


@dataclass(frozen=True, order=True)
class TargetName:
    """Where results come from: a backend and the hardware it ran on or emulated."""

    backend: str
    hardware: str

    @property
    def kind(self) -> Kind:
        """Whether numbers from there are measured or emulated."""
        return Kind.EMULATED if self.backend == "emulated" else Kind.MEASURED

    def __str__(self) -> str:
        if self.kind is Kind.EMULATED:
            return f"emulated, {self.hardware}"
        return f"measured, {self.hardware} ({self.backend})"


@dataclass(frozen=True)
class Figure:
    """One of our numbers as it may be shown: value, interval, unit, origin."""

    value: float
    low: float
    high: float
    n: int
    method: str
    """How the interval was found."""
    unit: str
    kind: Kind
    target: TargetName

    @property
    def width(self) -> float:
        """Width of the interval."""
        return self.high - self.low


@dataclass(frozen=True)
class Observation:
    """All samples of one metric with one set of labels in one record."""

    record: Record
    metric: str
    unit: str
    better: str
    kind: Kind
    labels: Mapping[str, str]
    samples: tuple[float, ...]
    band: tuple[float, float] | None

    @property
    def target(self) -> TargetName:
        """Where it was obtained."""
        return target_of(self.record)

    @property
    def figure(self) -> Figure:
        """Median and interval; for an emulated value the claimed band stands for the interval."""
        summary = summarise(self.samples)
        low, high, method = summary.low, summary.high, summary.method
        if self.kind is Kind.EMULATED:
            low, high = self.band or (summary.median, summary.median)
            method = "claimed 80 % band" if self.band else "no band claimed"
        return Figure(summary.median, low, high, summary.n, method, self.unit, self.kind, self.target)

    def coordinates(self) -> dict[str, Any]:
        """Labels, then swept paths: what tells this value from its neighbours."""
        return {**self.labels, **self.record.swept}

    def coordinate(self, key: str) -> Any:
        """The value under a label, a swept path, a path of the spec, or `cell`, `backend`, `hardware`.

        Raises:
            KeyError: there is no such coordinate.
        """
        if key in self.labels:
            return self.labels[key]
        return record_coordinate(self.record, key)

    def has(self, wanted: Mapping[str, Scalar]) -> bool:
        """Whether every wanted coordinate exists and has the wanted value."""
        return all(_holds(self, key, value) for key, value in wanted.items())


def target_of(record: Record) -> TargetName:
    """Where a record comes from."""
    return TargetName(record.target.backend, record.target.hardware)


def record_coordinate(record: Record, key: str) -> Any:
    """The value of a swept path, a path of the resolved spec, or `cell`, `backend`, `hardware`.

    Raises:
        KeyError: there is no such coordinate.
    """
    if key in record.swept:
        return record.swept[key]
    if key == "cell":
        return record.cell
    if key in SPECIAL_KEYS:
        return getattr(record.target, key)
    value: Any = record.resolved
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            raise KeyError(key)
        value = value[part]
    return value


def observe(records: Iterable[Record]) -> list[Observation]:
    """Every value of the records, in their order; what several ranks report under one name is pooled.

    Records that did not end well contribute what they measured before; see `usable`.
    """
    found: list[Observation] = []
    for record in records:
        groups: dict[tuple[str, tuple[tuple[str, str], ...]], list[Any]] = {}
        for value in record.values:
            groups.setdefault((value.name, tuple(sorted(value.labels.items()))), []).append(value)
        for values in groups.values():
            first = values[0]
            samples = tuple(sample for value in values for sample in value.samples)
            if samples:
                found.append(
                    Observation(
                        record, first.name, first.unit, first.better, first.kind, first.labels, samples, first.band
                    )
                )
    return found


def usable(records: Iterable[Record]) -> list[Observation]:
    """The values of the trials that ended well: the only ones that are judged."""
    return observe(record for record in records if record.state is State.OK)


def targets(records: Iterable[Record]) -> list[TargetName]:
    """Every target with a record, in the order of first appearance."""
    return list(dict.fromkeys(target_of(record) for record in records))


def counterpart(
    observation: Observation, baseline: Mapping[str, Scalar], among: Sequence[Observation]
) -> Observation | None:
    """The value that `observation` is compared with: same target, metric and coordinates, but for `baseline`."""
    wanted = {key: value for key, value in observation.coordinates().items() if key not in baseline}
    for other in among:
        same_place = other.target == observation.target and other.record.spec == observation.record.spec
        same_thing = other.metric == observation.metric and other.kind == observation.kind
        if same_place and same_thing and other.has(baseline) and other.has(wanted):
            return other
    return None


def ratio(observation: Observation, base: Observation) -> Figure | None:
    """How many times better than the baseline: above 1 is better, whichever way the metric points.

    The interval is the widest that the two intervals allow. None where the division makes no sense: a value that is
    not positive, or a metric that has no better direction.

    Raises:
        ValueError: the two come from different targets.
    """
    if observation.target != base.target or observation.kind != base.kind:
        raise ValueError(f"no ratio across targets: {observation.target} and {base.target}")
    ours, theirs = observation.figure, base.figure
    if observation.better == "target" or min(ours.low, theirs.low) <= 0:
        return None
    top, bottom = (ours, theirs) if observation.better == "higher" else (theirs, ours)
    low, high = top.low / bottom.high, top.high / bottom.low
    if observation is base:
        low = high = 1.0
    method = f"from the intervals of both: {ours.method}"
    return Figure(
        top.value / bottom.value,
        low,
        high,
        min(ours.n, theirs.n),
        method,
        RATIO_UNIT,
        observation.kind,
        observation.target,
    )


def same(left: Any, right: Any) -> bool:
    """Whether a coordinate has a wanted value; labels are text, so `4` and `"4"` are the same, `true` and `1` not."""
    return bool(left == right and isinstance(left, bool) == isinstance(right, bool)) or spelled(left) == spelled(right)


def _holds(observation: Observation, key: str, value: Any) -> bool:
    try:
        return same(observation.coordinate(key), value)
    except KeyError:
        return False
