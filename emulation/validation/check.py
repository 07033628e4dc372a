"""The emulator's errors on rows it did not see, and whether they have become worse than those on record."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from emulation import MODEL_VERSION, validation
from emulation.calibrate.score import Pair, Score, score
from emulation.validation import Split

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from emulation.validation import Row

ALL = "all"
"""Label of the line over all rows of a split."""
WORSE = 0.01
"""By how much a mean error may grow before it counts as worse."""
LEAST_COVERAGE = 0.70
FEWEST = 50
"""Pairs below which coverage is not judged: of 16, one honest band in five covers less than 70 % by chance."""
MOST_KEPT = 4
"""Significant digits of a stored score: more would differ between machines."""


@dataclass(frozen=True)
class Line:
    """The score of one family under one split, over all seeds."""

    data: str
    split: str
    label: str
    fitted: int
    """Rows the model was fitted to, of the first seed."""
    refused: int
    """Rows of which the model said nothing, over all seeds."""
    score: Score
    """Over all seeds: a row that two of them hold out counts twice."""

    @property
    def key(self) -> tuple[str, str, str]:
        """What is compared over time."""
        return self.data, self.split, self.label


@dataclass(frozen=True)
class Report:
    """All lines, and what they rest on."""

    model_version: str
    seeds: tuple[int, ...]
    digests: Mapping[str, str]
    """Data set -> SHA-256 of its rows; scores of other rows are not compared."""
    lines: tuple[Line, ...]
    absent: tuple[str, ...]
    """Data sets that were not found."""

    def document(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "model_version": self.model_version,
            "seeds": list(self.seeds),
            "digests": dict(self.digests),
            "lines": [_flat(line) for line in self.lines],
            "absent": list(self.absent),
        }


def check(folder: Path, *, seeds: Sequence[int], held_out: Path | None = None, names: Sequence[str] = ()) -> Report:
    """Fit on some rows and score others, for every data set.

    Args:
        folder: where the data sets lie.
        seeds: of the random splits; the pairs of all are scored together.
        held_out: a folder of the same layout: fit on all rows of `folder`, and score its rows that are not among them.
        names: only these data sets.

    Raises:
        ValueError: a file has another layout.
        AssertionError: a split scores rows that it fits.
    """
    lines: list[Line] = []
    digests: dict[str, str] = {}
    absent: list[str] = []
    for name in names or validation.DATA_SETS:
        data = validation.load(name)
        rows = data.rows(folder)
        others = data.rows(held_out) if held_out else []
        if not rows or (held_out and not others):
            absent.append(name)
            continue
        digests[name] = digest([*rows, *others])
        runs: dict[str, list[tuple[Split, int]]] = {}
        for seed in seeds:
            found = [held_out_split(rows, others)] if held_out else data.splits(rows, seed)
            for split in found:
                if split.drawn or split.name not in runs:
                    runs.setdefault(split.name, []).append((split, seed))
        for drawn in runs.values():
            lines += _scored(name, data, drawn)
    return Report(MODEL_VERSION, tuple(seeds), digests, tuple(lines), tuple(absent))


def held_out_split(rows: Sequence[Row], others: Sequence[Row]) -> Split:
    """All of the one, against what of the other is not in it."""
    known = {row.key for row in rows}
    return Split("held out", rows, [row for row in others if row.key not in known], drawn=False)


def digest(rows: Sequence[Row]) -> str:
    """SHA-256 over what was measured and the result."""
    text = json.dumps([[row.family, sorted(row.features.items()), row.seconds] for row in rows])
    return hashlib.sha256(text.encode()).hexdigest()


def worsened(now: Report, before: Mapping[str, Any]) -> list[str]:
    """What is worse than on record, one sentence each; nothing for data sets that are absent or `not_compared`.

    Args:
        now: what was just scored.
        before: a `Report.document` read back.
    """
    lines = {line.key: line for line in now.lines}
    others = {*not_compared(now, before), *now.absent}
    found = []
    for old in before["lines"]:
        key = old["data"], old["split"], old["label"]
        if old["data"] in others:
            continue
        name, line = ", ".join(key), lines.get(key)
        if line is None:
            found.append(f"{name}: is no longer scored")
            continue
        if line.score.mape > old["mape"] + WORSE:
            found.append(f"{name}: mean error {100 * line.score.mape:.2f} %, {100 * old['mape']:.2f} % on record")
        covered, then = line.score.coverage, old["coverage"]
        judged = line.score.count >= FEWEST and then is not None and then >= LEAST_COVERAGE
        if judged and (covered is None or covered < LEAST_COVERAGE):
            text = "no band" if covered is None else f"{100 * covered:.0f} %"
            found.append(f"{name}: the 80 % band covers {text}, {100 * then:.0f} % on record")
    return found


def not_compared(now: Report, before: Mapping[str, Any]) -> list[str]:
    """Data sets whose scores say nothing about those on record: other rows, or other splits of them."""
    same = list(now.seeds) == before["seeds"]
    return [name for name, found in now.digests.items() if not same or before["digests"].get(name) != found]


def _scored(name: str, data: validation.DataSet, drawn: Sequence[tuple[Split, int]]) -> list[Line]:
    pairs: dict[str, list[Pair]] = {ALL: []}
    refused: dict[str, int] = {}
    for split, seed in drawn:
        _check_apart(split)
        predict = data.fit(split.fit, seed)
        for row in split.scored:
            found = predict(row)
            for label in dict.fromkeys((ALL, *split.labels(row))):
                if found is None:
                    refused[label] = refused.get(label, 0) + 1
                    continue
                choice = f"{seed}/{row.choice}" if row.choice else ""
                pairs.setdefault(label, []).append(Pair(found.seconds, row.seconds, (found.low, found.high), choice))
    first = drawn[0][0]
    return [
        Line(name, first.name, label, len(first.fit), refused.get(label, 0), score(of))
        for label, of in sorted(pairs.items(), key=lambda item: (item[0] != ALL, item[0]))
        if of
    ]


def _check_apart(split: Split) -> None:
    known = {row.key for row in split.fit}
    both = [row for row in split.scored if row.key in known]
    if both:
        raise AssertionError(f"split {split.name!r} scores {len(both)} rows that it fits, such as {both[0]}")


def _flat(line: Line) -> dict[str, Any]:
    counts = {"fitted": line.fitted, "refused": line.refused}
    head = {"data": line.data, "split": line.split, "label": line.label}
    return head | counts | {key: _rounded(value) for key, value in asdict(line.score).items()}


def _rounded(value: float | int | None) -> float | int | None:
    return float(f"{value:.{MOST_KEPT}g}") if isinstance(value, float) else value
