"""Expectations become verdicts, and verdicts an exit code.

An expectation of a spec selects values (`metric`, `where`, `on`), optionally turns them into ratios to a `baseline`
within the same target, and states what must hold: a bound of its own (`at_least: 10 x`) or a published figure
(`reference: rdma/abstract/device/speedup_over_grpc`). Every selected value gets its own verdict with the figures it
rests on; nothing is averaged over cells, because a claim of a best case or of one row is not about a mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from emulation.units import render
from harness.errors import Exit, nearest
from harness.judging.comparison import Judgement, Word, compare, quantity, shown
from harness.judging.observations import (
    Figure,
    Observation,
    TargetName,
    counterpart,
    ratio,
    target_of,
    targets,
    usable,
)
from harness.loading.sweep import spelled
from harness.records import State

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from harness.records import Record
    from harness.references import Published, References
    from harness.spec import Expectation, Experiment, Scalar

__all__ = ["Verdict", "Word", "exit_code", "judge"]


@dataclass(frozen=True)
class Verdict:
    """What is to be said of one expectation and one value."""

    expectation: str
    """The expectation in words: `step_time where transport = shm, over transport = grpc: at least 10 x`."""
    metric: str
    word: Word
    passed: bool | None
    """None: there was nothing to keep or miss."""
    required: bool
    """Whether a miss changes the exit code."""
    reason: str
    target: TargetName | None = None
    where: tuple[tuple[str, str], ...] = ()
    """Coordinates of the value that was judged."""
    ours: Figure | None = None
    theirs: Published | None = None

    @property
    def missed(self) -> bool:
        """Whether this verdict makes the run fail."""
        return self.required and self.passed is False

    @property
    def place(self) -> str:
        """The coordinates in words."""
        return ", ".join(f"{key} = {value}" for key, value in self.where)


def judge(experiment: Experiment, records: Sequence[Record], references: References) -> list[Verdict]:
    """Every expectation, on every target that has records, for every value it selects.

    Raises:
        SpecError: an expectation refers to a published figure that does not exist.
    """
    observations = usable(records)
    return [
        verdict
        for expectation in experiment.expect
        for verdict in _Case(expectation, observations, records, references).verdicts()
    ]


def exit_code(verdicts: Iterable[Verdict], records: Sequence[Record]) -> Exit:
    """0 kept; 1 a trial failed or an expectation was missed; 3 nothing ran because every trial is unsupported."""
    states = {record.state for record in records}
    if states == {State.UNSUPPORTED}:
        return Exit.LACKS_NEED
    if states - {State.OK, State.UNSUPPORTED} or any(verdict.missed for verdict in verdicts):
        return Exit.FAILED
    return Exit.OK


@dataclass(frozen=True)
class _Case:
    """One expectation with all it may look at."""

    expectation: Expectation
    observations: Sequence[Observation]
    records: Sequence[Record]
    references: References

    def verdicts(self) -> Iterator[Verdict]:
        wanted = self.expectation.on
        chosen = [target for target in targets(self.records) if not wanted or target.backend == wanted]
        if not chosen:
            reason = f"no trial ran on {wanted}" if wanted else "no trial ran"
            yield self._verdict(Judgement(Word.NOT_RUN, None, reason))
        for target in chosen:
            yield from self._on(target)

    def _on(self, target: TargetName) -> Iterator[Verdict]:
        expectation = self.expectation
        selected = [
            o
            for o in self.observations
            if o.target == target and o.metric == expectation.metric and o.has(expectation.where)
        ]
        if not selected:
            yield self._verdict(self._nothing(target), target)
        for observation in selected:
            yield from self._value(observation)

    def _value(self, observation: Observation) -> Iterator[Verdict]:
        figure, problem = self._figure(observation)
        if figure is None:
            if problem:
                yield self._verdict(Judgement(Word.NOT_COMPARABLE, False, problem), observation=observation)
            return
        for judgement in self._bounds(figure):
            yield self._verdict(judgement, observation=observation, figure=figure)
        if self.expectation.reference:
            published = self.references.find(self.expectation.reference)
            judgement = compare(
                figure,
                better=observation.better,
                record=observation.record,
                labels=observation.labels,
                published=published,
                tolerance=self.expectation.tolerance,
            )
            yield self._verdict(judgement, observation=observation, figure=figure, published=published)

    def _figure(self, observation: Observation) -> tuple[Figure | None, str]:
        """What is judged: the value or its ratio; else why it cannot be, empty for the baseline itself."""
        baseline = self.expectation.baseline
        if not baseline:
            return observation.figure, ""
        base = counterpart(observation, baseline, self.observations)
        if base is observation:
            return None, ""
        if base is None:
            return None, f"the baseline {_spell(baseline)} has no value on {observation.target}"
        found = ratio(observation, base)
        if found is None:
            return None, f"no ratio to {_spell(baseline)}: a value is not positive, or neither direction is better"
        return found, ""

    def _bounds(self, figure: Figure) -> Iterator[Judgement]:
        stated = {
            "at least": self.expectation.at_least,
            "at most": self.expectation.at_most,
            "equal to": self.expectation.equals,
        }
        for relation, bound in stated.items():
            if bound is not None:
                yield _held(figure, relation, bound, self.expectation.tolerance)
        if not self.expectation.reference and all(bound is None for bound in stated.values()):
            yield Judgement(Word.PASS, True, "a value was recorded, and nothing more is asked")

    def _nothing(self, target: TargetName) -> Judgement:
        """Why an expectation selects no value of a target."""
        of_target = [record for record in self.records if target_of(record) == target]
        bad = [record for record in of_target if record.state is not State.OK]
        if bad:
            judged = None if all(r.state in (State.UNSUPPORTED, State.CANCELLED) for r in bad) else False
            return Judgement(Word.NOT_RUN, judged, f"trial {bad[0].cell}: {why_empty(bad[0])}")
        here = [o for o in self.observations if o.target == target]
        return Judgement(Word.NOT_RUN, False, _unselected(self.expectation, here))

    def _verdict(
        self,
        judgement: Judgement,
        target: TargetName | None = None,
        *,
        observation: Observation | None = None,
        figure: Figure | None = None,
        published: Published | None = None,
    ) -> Verdict:
        coordinates = observation.coordinates() if observation else {}
        return Verdict(
            expectation=describe(self.expectation),
            metric=self.expectation.metric,
            word=judgement.word,
            passed=judgement.passed,
            required=self.expectation.required,
            reason=judgement.reason,
            target=observation.target if observation else target,
            where=tuple((key, spelled(value)) for key, value in coordinates.items()),
            ours=figure or (observation.figure if observation else None),
            theirs=published,
        )


def why_empty(record: Record) -> str:
    """Why a trial has no (whole) result, in one line."""
    if record.failure is None:
        return str(record.state)
    first = record.failure.message.strip().splitlines() or [record.failure.type]
    return f"{record.state}: {first[0]}"


def describe(expectation: Expectation) -> str:
    """An expectation in one line."""
    text = expectation.metric
    if expectation.where:
        text += f" where {_spell(expectation.where)}"
    if expectation.on:
        text += f" on {expectation.on}"
    if expectation.baseline:
        text += f", over {_spell(expectation.baseline)}"
    promises = [
        f"{words} {bound}"
        for words, bound in (
            ("at least", expectation.at_least),
            ("at most", expectation.at_most),
            ("equal to", expectation.equals),
            ("as in", expectation.reference or None),
        )
        if bound is not None
    ]
    if expectation.tolerance:
        promises.append(f"within {100 * expectation.tolerance:g} %")
    return f"{text}: {', '.join(promises)}" if promises else text


def _held(figure: Figure, relation: str, bound: float | str, tolerance: float) -> Judgement:
    try:
        limit = quantity(bound, figure.unit)
    except ValueError as error:
        return Judgement(Word.NOT_COMPARABLE, False, f"{relation} {bound}: {error}; the metric is in {figure.unit!r}")
    margin = abs(limit) * tolerance
    kept = {
        "at least": figure.value >= limit - margin,
        "at most": figure.value <= limit + margin,
        "equal to": abs(figure.value - limit) <= margin,
    }[relation]
    unsure = figure.low < limit < figure.high
    note = "; the bound lies inside our interval" if unsure and relation != "equal to" else ""
    reason = f"{shown(figure)} is {'' if kept else 'not '}{relation} {render(limit, figure.unit)}{note}"
    return Judgement(Word.PASS if kept else Word.FAIL, kept, reason)


def _unselected(expectation: Expectation, here: Sequence[Observation]) -> str:
    metrics = sorted({o.metric for o in here})
    if expectation.metric not in metrics:
        hint = nearest(expectation.metric, metrics)
        return f"no value of metric {expectation.metric!r}" + (f"; did you mean {hint!r}?" if hint else "")
    here = [o for o in here if o.metric == expectation.metric]
    for key, value in expectation.where.items():
        known = list(dict.fromkeys(spelled(o.coordinates()[key]) for o in here if key in o.coordinates()))
        if known and spelled(value) not in known:
            hint = nearest(spelled(value), known)
            meant = f"; did you mean {hint!r}?" if hint else ""
            return f"no value with {key} = {spelled(value)}; there are {', '.join(known)}{meant}"
        keys = sorted({k for o in here for k in o.coordinates()})
        if not known and not any(o.has({key: value}) for o in here):
            hint = nearest(key, keys)
            return f"no value has {key} = {spelled(value)}" + (f"; did you mean {hint!r}?" if hint else "")
    return f"no value with {_spell(expectation.where)}"


def _spell(where: Mapping[str, Scalar]) -> str:
    return ", ".join(f"{key} = {spelled(value)}" for key, value in where.items())
