"""The ledger of predictions, and what they turned out to be worth.

Every emulated value is a prediction: it states which version of the emulator made it, from which hardware profile, and
a band that is claimed to hold the truth in 80 % of cases. Whenever a measured record exists for the same plan on the
same hardware, the prediction can be scored. The scores (`emulation.calibrate.score`) are taken per metric, engine,
hardware and version of the emulator: errors, order, regret of the plan that would have been picked, coverage of the
claimed bands.

Nothing is stored apart: the ledger is derived from the records, so it cannot disagree with them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from emulation.calibrate import score as scoring
from harness.judging.observations import Observation, observe
from harness.loading.sweep import spelled
from harness.records import Kind, State

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from harness.records import Record


@dataclass(frozen=True)
class Prediction:
    """One emulated value with what it rests on."""

    key: str
    """Run key of its record."""
    spec: str
    engine: str
    metric: str
    unit: str
    better: str
    labels: tuple[tuple[str, str], ...]
    """Labels of the measurement, sorted."""
    plan_digest: str
    hardware: str
    value: float
    band: tuple[float, float] | None
    model_version: str
    profile_digest: str
    grade: str

    @property
    def name(self) -> str:
        """Metric and labels in one line."""
        where = ", ".join(f"{key} = {value}" for key, value in self.labels)
        return f"{self.metric} ({where})" if where else self.metric


@dataclass(frozen=True)
class Pair:
    """A prediction and the measurement of the same thing."""

    prediction: Prediction
    measured: float
    low: float
    high: float
    backend: str
    measured_key: str

    @property
    def scored(self) -> scoring.Pair:
        """What the scores are taken of: values with equal labels on equal hardware are alternatives."""
        found = self.prediction
        choice = "" if found.better == "target" else f"{found.hardware}: {found.name}"
        return scoring.Pair(found.value, self.measured, found.band, choice)

    @property
    def error(self) -> float:
        """Signed relative error; positive when the prediction is too high."""
        return self.scored.error

    @property
    def covered(self) -> bool | None:
        """Whether the measured median lies in the claimed band; None if none was claimed."""
        return self.scored.covered


@dataclass(frozen=True)
class Family(scoring.Score):
    """The scores of one metric of one engine on one hardware under one version of the emulator."""

    engine: str
    metric: str
    hardware: str
    model_version: str
    pairs: tuple[Pair, ...]


@dataclass(frozen=True)
class Unscored:
    """A prediction without a measurement to hold it against."""

    prediction: Prediction
    reason: str


@dataclass(frozen=True)
class Score:
    """All predictions of some records, scored where they can be."""

    families: tuple[Family, ...]
    unscored: tuple[Unscored, ...]

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """Every scored prediction."""
        return tuple(pair for family in self.families for pair in family.pairs)


def ledger(records: Iterable[Record]) -> list[Prediction]:
    """Every emulated value of the records that ended well, as a prediction."""
    emulated = [record for record in records if record.state is State.OK and record.kind is Kind.EMULATED]
    return [_prediction(observation) for observation in observe(emulated)]


def score(records: Sequence[Record]) -> Score:
    """Pair predictions with measurements of equal plan, metric, labels and hardware, and score the pairs."""
    measured = [
        o
        for o in observe(r for r in records if r.state is State.OK)
        if o.kind is Kind.MEASURED and o.record.plan_digest
    ]
    groups: dict[tuple[str, str, str, str], list[Pair]] = {}
    unscored: list[Unscored] = []
    for prediction in ledger(records):
        found = [o for o in measured if _same_thing(o, prediction)]
        there = [o for o in found if o.target.hardware == prediction.hardware]
        if not there:
            unscored.append(Unscored(prediction, _reason(prediction, found, measured)))
            continue
        pairs = [_pair(prediction, o) for o in there]
        nonzero = [pair for pair in pairs if pair.measured]
        if not nonzero:
            unscored.append(Unscored(prediction, "the measured value is 0, no relative error exists"))
        family = (prediction.engine, prediction.metric, prediction.hardware, prediction.model_version)
        groups.setdefault(family, []).extend(nonzero)
    families = tuple(_family(*names, tuple(pairs)) for names, pairs in sorted(groups.items()) if pairs)
    return Score(families, tuple(unscored))


def _prediction(observation: Observation) -> Prediction:
    record, stamp = observation.record, observation.record.emulation
    return Prediction(
        key=record.key,
        spec=record.spec,
        engine=record.engine,
        metric=observation.metric,
        unit=observation.unit,
        better=observation.better,
        labels=_labels(observation),
        plan_digest=record.plan_digest,
        hardware=observation.target.hardware,
        value=observation.figure.value,
        band=observation.band,
        model_version=stamp.model_version if stamp else "",
        profile_digest=stamp.profile_digest if stamp else "",
        grade=stamp.grade if stamp else "",
    )


def _labels(observation: Observation) -> tuple[tuple[str, str], ...]:
    return tuple((key, spelled(value)) for key, value in sorted(observation.labels.items()))


def _same_thing(observation: Observation, prediction: Prediction) -> bool:
    return (
        observation.record.plan_digest == prediction.plan_digest
        and observation.record.engine == prediction.engine
        and observation.metric == prediction.metric
        and _labels(observation) == prediction.labels
    )


def _reason(prediction: Prediction, found: Sequence[Observation], measured: Sequence[Observation]) -> str:
    if found:
        places = ", ".join(sorted({o.target.hardware for o in found}))
        return f"predicted for {prediction.hardware}, measured only on {places}"
    if not prediction.plan_digest:
        return "the record names no plan"
    if any(o.record.plan_digest == prediction.plan_digest for o in measured):
        return "the plan was measured, but not this metric with these labels"
    return "no measured record has this plan"


def _pair(prediction: Prediction, observation: Observation) -> Pair:
    figure = observation.figure
    target = observation.target
    return Pair(prediction, figure.value, figure.low, figure.high, target.backend, observation.record.key)


def _family(engine: str, metric: str, hardware: str, model_version: str, pairs: tuple[Pair, ...]) -> Family:
    larger = pairs[0].prediction.better == "higher"
    scores = scoring.score([pair.scored for pair in pairs], larger_is_better=larger)
    return Family(
        **vars(scores), engine=engine, metric=metric, hardware=hardware, model_version=model_version, pairs=pairs
    )
