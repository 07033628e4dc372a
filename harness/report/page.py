"""The report as one page that needs nothing but itself.

Style and drawings are inlined, there is no script, and nothing is fetched: the file can be mailed, archived, and read
from disk in ten years. Jinja escapes every value; only drawings, which this package makes or has sanitised, are
inserted as they are.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING

from harness.judging.comparison import shown
from harness.judging.observations import target_of
from harness.report import attachments, figures, timelines
from harness.report.content import outcome

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from harness.checks import Verdict
    from harness.judging.predictions import Unscored
    from harness.judging.tables import Line, Section, TableView
    from harness.report.attachments import Attachment
    from harness.report.content import Content
    from harness.report.figures import Panel
    from harness.report.timelines import Timeline


@dataclass(frozen=True)
class Group:
    """Consecutive lines of one row label: the label is printed once, beside all of them."""

    row: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class DrawnSection:
    """A metric of a table with its drawings."""

    section: Section
    groups: tuple[Group, ...]
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class DrawnTable:
    """A table with everything that is drawn under it."""

    table: TableView
    sections: tuple[DrawnSection, ...]


@dataclass(frozen=True)
class DrawnTimeline:
    """A timeline with its drawing and the way to the whole trace."""

    timeline: Timeline
    link: str
    panel: Panel | None


def render(content: Content, *, beside: Path) -> str:
    """The page.

    Args:
        content: what to report.
        beside: the directory the page will lie in; what trials kept is linked relative to it.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"shown": shown, "outcome": outcome, "percent": _percent, "place_of": target_of}
    environment.filters["groupby_expectation"] = _by_expectation
    template = environment.from_string(_resource("page.html.j2"))
    page: str = template.render(
        content=content,
        experiment=content.experiment,
        style=_resource("page.css"),
        tables=[_table(view) for view in content.tables],
        families=[(family, figures.scatter(family)) for family in content.score.families],
        unscored=_by_reason(content.score.unscored),
        timelines=list(_timelines(content, beside)),
        drawings=_linked(attachments.drawings(content.records, content.locate), beside),
        texts=_linked(attachments.texts(content.records, content.locate), beside),
        papers=_papers(content),
        machines=_machines(content),
    )
    return page


def _resource(name: str) -> str:
    return resources.files("harness.report").joinpath(name).read_text(encoding="utf-8")


def _table(view: TableView) -> DrawnTable:
    drawn = (DrawnSection(s, tuple(_groups(s)), tuple(figures.chart(view, s))) for s in view.sections)
    return DrawnTable(view, tuple(drawn))


def _groups(section: Section) -> Iterator[Group]:
    rows = dict.fromkeys(line.row for line in section.lines)
    for row in rows:
        yield Group(row, tuple(line for line in section.lines if line.row == row))


def _by_expectation(verdicts: Iterable[Verdict]) -> list[tuple[str, list[Verdict]]]:
    groups: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        groups.setdefault(verdict.expectation, []).append(verdict)
    return list(groups.items())


def _by_reason(unscored: tuple[Unscored, ...]) -> list[tuple[str, int]]:
    reasons: dict[str, int] = {}
    for item in unscored:
        reasons[item.reason] = reasons.get(item.reason, 0) + 1
    return list(reasons.items())


def _timelines(content: Content, beside: Path) -> Iterator[DrawnTimeline]:
    for timeline in timelines.collect(content.records, content.locate):
        yield DrawnTimeline(
            timeline, _link(timeline.path, beside), figures.gantt(timeline) if timeline.tracks else None
        )


def _linked(kept: Iterable[Attachment], beside: Path) -> list[tuple[Attachment, str]]:
    return [(attachment, _link(attachment.path, beside)) for attachment in kept]


def _link(path: Path, beside: Path) -> str:
    return os.path.relpath(path, beside).replace(os.sep, "/")


def _papers(content: Content) -> list[tuple[str, str, str, str]]:
    """(title, venue, citation, address) of every paper that is quoted."""
    quoted = [claim.paper for table in content.tables for claim in table.claims]
    quoted += [verdict.theirs.paper for verdict in content.verdicts if verdict.theirs]
    cells = (cell for t in content.tables for s in t.sections for line in s.lines for cell in line.cells)
    quoted += [cell.published.paper for cell in cells if cell.published]
    return list(dict.fromkeys((p.title, p.venue, p.citation, p.url) for p in quoted))


def _machines(content: Content) -> list[tuple[str, list[tuple[str, str]]]]:
    """(target, what was found there) for each target once; an emulated one names model and profile instead."""
    found: dict[str, list[tuple[str, str]]] = {}
    for record in content.records:
        facts = [
            (key, _flat(value)) for key, value in record.provenance.hardware.items() if value not in (None, [], {})
        ]
        if record.emulation is not None:
            stamp = record.emulation
            facts = [
                ("emulator", f"model version {stamp.model_version}"),
                ("profile", f"{stamp.profile}, digest {stamp.profile_digest[:12]}"),
                ("weakest figure", stamp.grade),
            ]
        commit = str(record.provenance.git.get("commit", ""))[:12]
        changed = " with uncommitted changes" if record.provenance.git.get("dirty") else ""
        facts += [("commit", f"{commit}{changed}")] if commit else []
        facts += [("Python", record.provenance.python)] if record.provenance.python else []
        packages = ", ".join(f"{name} {version}" for name, version in sorted(record.provenance.packages.items()))
        facts += [("packages", packages)] if packages else []
        found.setdefault(str(target_of(record)), facts)
    return list(found.items())


def _flat(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_flat(item)}" for key, item in value.items() if item not in (None, [], {}))
    if isinstance(value, list | tuple):
        return "; ".join(_flat(item) for item in value)
    return str(value)


def _percent(value: float | None, *, signed: bool = False) -> str:
    if value is None:
        return ""
    return f"{100 * value:+.1f} %" if signed else f"{100 * value:.1f} %"
