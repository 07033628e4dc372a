"""The report as Markdown, for a pull request or a wiki."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from harness.judging.comparison import shown
from harness.judging.scores import cells
from harness.report.content import outcome

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from harness.checks import Verdict
    from harness.judging.tables import CellView, Section, TableView
    from harness.report.content import Content

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~!&])")


def render(content: Content) -> str:
    """The whole report; the same records give the same text."""
    return "\n".join(_lines(content)).rstrip() + "\n"


def escape(text: str) -> str:
    """Text as itself inside a table cell: no markup, no line break."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def _lines(content: Content) -> Iterator[str]:
    experiment = content.experiment
    yield f"# {escape(experiment.name)}"
    yield ""
    if experiment.description:
        yield from (escape(experiment.description), "")
    states = ", ".join(f"{count} {state}" for state, count in content.states) or "none"
    words = ", ".join(f"{count} {word}" for word, count in content.words) or "none"
    yield from (f"Trials: {states}. Verdicts: {words}.", "")
    for table in content.tables:
        yield from _table(table)
    yield from _verdicts(content.verdicts)
    yield from _scores(content)
    yield from _missing(content)
    yield from _provenance(content)


def _grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def _table(table: TableView) -> Iterator[str]:
    yield from (f"## {escape(table.title)}", "")
    for section in table.sections:
        yield from _section(table, section)
    if table.baseline:
        yield from (f"{escape(table.ratios)}.", "")
    for claim in table.claims:
        place = f"{claim.paper.title}, {claim.place}"
        yield f"- published: {escape(claim.column_title)}: **{escape(claim.text)}** ({escape(place)})"
    if table.claims:
        yield ""


def _section(table: TableView, section: Section) -> Iterator[str]:
    better = "" if section.better == "target" else f", {section.better} is better"
    yield from (f"**{escape(section.metric)}**{better}", "")
    head = [table.row_name, "kind", "where", *(column or section.metric for column in table.columns)]
    rows = [
        [escape(line.row), line.kind, escape(line.place), *(_cell(cell) for cell in line.cells)]
        for line in section.lines
    ]
    yield from _grid([escape(name) for name in head], rows)
    for absent in section.absent:
        yield f"- {absent.kind}, {escape(absent.place)}: no value ({escape(absent.reason)})"
    if section.absent:
        yield ""


def _cell(cell: CellView) -> str:
    parts = [escape(cell.text)]
    if cell.interval:
        parts.append(f"({escape(cell.interval)})")
    if cell.ratio_text:
        parts.append(f"**{escape(cell.ratio_text)}**")
    return " ".join(parts)


def _verdicts(verdicts: Sequence[Verdict]) -> Iterator[str]:
    if not verdicts:
        return
    yield from ("## Verdicts", "")
    rows = [
        [
            f"**{verdict.word}**",
            escape(outcome(verdict)),
            escape(verdict.expectation),
            escape(", ".join(filter(None, [verdict.place, str(verdict.target or "")]))),
            escape(shown(verdict.ours)) if verdict.ours else "",
            escape(f"{verdict.theirs.text}, {verdict.theirs.place}") if verdict.theirs else "",
            escape(verdict.reason),
        ]
        for verdict in verdicts
    ]
    yield from _grid(["verdict", "outcome", "expectation", "value", "ours", "published", "reason"], rows)


def _scores(content: Content) -> Iterator[str]:
    score = content.score
    if not score.families:
        return
    yield from ("## Predictions against measurements", "")
    rows = [
        [
            escape(family.engine),
            escape(family.metric),
            escape(family.hardware),
            escape(family.model_version),
            str(len(family.pairs)),
            *cells(family),
        ]
        for family in score.families
    ]
    head = [
        "engine",
        "metric",
        "hardware",
        "model",
        "pairs",
        "bias",
        "MAPE",
        "median",
        "p90",
        "max",
        "Kendall tau",
        "regret",
        "in 80 % band",
    ]
    yield from _grid(head, rows)


def _missing(content: Content) -> Iterator[str]:
    if not content.missing:
        return
    yield from ("## Trials without a result", "")
    rows = [[escape(m.cell), escape(str(m.target)), m.state, escape(m.reason)] for m in content.missing]
    yield from _grid(["cell", "target", "state", "reason"], rows)


def _provenance(content: Content) -> Iterator[str]:
    yield from ("## Records", "")
    rows = [
        [
            escape(record.cell),
            record.target.backend,
            escape(record.target.hardware),
            str(record.state),
            record.key[:12],
            escape(str(record.provenance.git.get("commit", ""))[:12]),
            escape(record.started),
        ]
        for record in content.records
    ]
    yield from _grid(["cell", "backend", "hardware", "state", "key", "commit", "started"], rows)
