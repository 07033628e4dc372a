"""What every form of the report says, worked out once.

The terminal, the page, Markdown and CSV differ in looks alone: tables, verdicts and scores come from here, so that no
two of them can disagree.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from harness import checks
from harness.checks import Verdict, why_empty
from harness.judging import predictions, tables
from harness.judging.observations import TargetName, target_of
from harness.records import State

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from harness.judging.predictions import Score
    from harness.judging.tables import TableView
    from harness.records import Record
    from harness.references import References
    from harness.spec import Experiment

    Locate = Callable[[Record], Path | None]
    """Finds a record's trial directory, where its artifacts lie."""


@dataclass(frozen=True)
class Missing:
    """A trial that has no whole result, and why."""

    cell: str
    target: TargetName
    state: str
    reason: str


@dataclass(frozen=True)
class Content:
    """An experiment with its records, ready to be reported."""

    experiment: Experiment
    records: Sequence[Record]
    references: References
    locate: Locate

    @cached_property
    def tables(self) -> list[TableView]:
        """The spec's tables, or the default one."""
        return tables.build(self.experiment, self.records, self.references)

    @cached_property
    def verdicts(self) -> list[Verdict]:
        """One for each expectation and value."""
        return checks.judge(self.experiment, self.records, self.references)

    @cached_property
    def score(self) -> Score:
        """Predictions against measurements."""
        return predictions.score(self.records)

    @property
    def missing(self) -> list[Missing]:
        """Every trial without a whole result."""
        return [
            Missing(record.cell, target_of(record), str(record.state), why_empty(record))
            for record in self.records
            if record.state is not State.OK
        ]

    @property
    def states(self) -> list[tuple[str, int]]:
        """How many trials ended in which state, `ok` first."""
        counts = Counter(record.state for record in self.records)
        return [(str(state), counts[state]) for state in State if counts[state]]

    @property
    def words(self) -> list[tuple[str, int]]:
        """How many verdicts of each word."""
        counts = Counter(verdict.word for verdict in self.verdicts)
        return [(str(word), counts[word]) for word in checks.Word if counts[word]]


def gather(
    experiment: Experiment,
    records: Sequence[Record],
    *,
    references: References | None = None,
    locate: Locate | None = None,
) -> Content:
    """Put together what a report needs; by default the shipped references and no artifacts."""
    from harness.references import load_all

    return Content(experiment, records, references or load_all(), locate or (lambda _: None))


def outcome(verdict: Verdict) -> str:
    """A verdict's effect in a word: `kept`, `missed`, `missed (not required)`, `not judged`."""
    if verdict.passed is None:
        return "not judged"
    if verdict.passed:
        return "kept"
    return "missed" if verdict.required else "missed (not required)"
