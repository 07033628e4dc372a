"""Results laid out the way a paper prints them.

A `Table` of a spec says which coordinate makes the rows, which the columns, and which metrics fill the cells. Each
target adds a line to each row, so that one table shows what was measured on this machine and what was emulated for a
cluster next to each other, and the published line stands under both. A cell that has no value says why.

This module decides what is shown; the modules of `harness.report` decide how it looks on a terminal, a page or a file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from emulation.units import render
from harness.checks import why_empty
from harness.judging.observations import (
    RATIO_UNIT,
    Figure,
    Observation,
    TargetName,
    counterpart,
    ratio,
    record_coordinate,
    target_of,
    targets,
    usable,
)
from harness.loading.sweep import spelled
from harness.records import State
from harness.spec import Table, Target

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from harness.records import Record
    from harness.references import Published, References
    from harness.spec import Experiment

EVERY_METRIC = ""
"""As `value` of a table: one section for every metric there is."""


@dataclass(frozen=True)
class CellView:
    """One cell: a figure of ours with its ratio to the baseline, a published figure, or the reason for neither."""

    column: str
    figure: Figure | None = None
    ratio: Figure | None = None
    """How many times better than the baseline of the same target; above 1 is better."""
    baseline: bool = False
    """Whether this cell is the baseline."""
    published: Published | None = None
    reason: str = ""
    """Why the cell is empty."""
    key: str = ""
    """Run key of the record behind the figure."""

    @property
    def text(self) -> str:
        """The value with its unit, or the reason in brackets."""
        if self.figure is not None:
            return render(self.figure.value, self.figure.unit)
        if self.published is not None:
            return self.published.text
        return f"({self.reason})"

    @property
    def interval(self) -> str:
        """`1.1 ms - 1.4 ms`, or empty for a single sample."""
        if self.figure is None or self.figure.low == self.figure.high:
            return ""
        return f"{render(self.figure.low, self.figure.unit)} - {render(self.figure.high, self.figure.unit)}"

    @property
    def ratio_text(self) -> str:
        """`25.1x`, `baseline`, or empty."""
        if self.baseline:
            return "baseline"
        return render(self.ratio.value, RATIO_UNIT) if self.ratio else ""


@dataclass(frozen=True)
class Line:
    """One row label on one target, or a published row."""

    row: str
    kind: str
    """`measured`, `emulated` or `published`."""
    place: str
    """Hardware and backend of our figures; place in the paper of published ones."""
    cells: tuple[CellView, ...]


@dataclass(frozen=True)
class Absent:
    """A target that has no value of a metric at all, and why."""

    kind: str
    place: str
    reason: str


@dataclass(frozen=True)
class Section:
    """One metric of a table."""

    metric: str
    unit: str
    better: str
    lines: tuple[Line, ...]
    absent: tuple[Absent, ...] = ()
    """Targets without any line, so that no table is filled with one repeated reason."""


@dataclass(frozen=True)
class TableView:
    """A whole table, ready to be drawn."""

    title: str
    row_name: str
    column_name: str
    columns: tuple[str, ...]
    """Headings; a single empty one where the table has no columns."""
    sections: tuple[Section, ...]
    baseline: str
    """What ratios are taken against, in words; empty without a baseline."""
    claims: tuple[Published, ...] = ()
    """Published figures of the table's reference that belong to no cell of ours: a headline, another row."""

    @property
    def ratios(self) -> str:
        """What its ratios are to, or why it has none; empty without a baseline."""
        if not self.baseline:
            return ""
        if any(cell.baseline for section in self.sections for line in section.lines for cell in line.cells):
            return f"Ratios: over {self.baseline}, same target; above 1 is better"
        return f"No ratios: no value has {self.baseline}"


def build(experiment: Experiment, records: Sequence[Record], references: References) -> list[TableView]:
    """Every table of the spec, or one with every metric by cell if the spec lays out none.

    Raises:
        SpecError: a table refers to published figures that do not exist.
    """
    layouts = experiment.tables or [Table(rows="cell", value=EVERY_METRIC)]
    observations = usable(records)
    return [_Layout(experiment, table, records, observations, references).view() for table in layouts]


def short(key: str) -> str:
    """A coordinate's name without the path to it: `model` for `engine.model`."""
    return key.rsplit(".", 1)[-1]


@dataclass(frozen=True)
class _Layout:
    experiment: Experiment
    table: Table
    records: Sequence[Record]
    observations: Sequence[Observation]
    references: References

    def view(self) -> TableView:
        columns = self._headings(self.table.columns) if self.table.columns else [""]
        published = self.references.select(self.table.reference) if self.table.reference else []
        used: set[str] = set()
        sections = tuple(self._section(metric, columns or [""], published, used) for metric in self._metrics())
        return TableView(
            title=self.table.title or self._title(),
            row_name=short(self.table.rows),
            column_name=short(self.table.columns),
            columns=tuple(columns or [""]),
            sections=sections,
            baseline=", ".join(f"{short(k)} = {spelled(v)}" for k, v in self.table.baseline.items()),
            claims=tuple(p for p in published if p.path not in used),
        )

    def _title(self) -> str:
        metrics = ", ".join(self._metrics()) or "results"
        by = f" by {short(self.table.rows)}" if self.table.rows else ""
        return f"{self.experiment.name}: {metrics}{by}"

    def _metrics(self) -> list[str]:
        if self.table.value == EVERY_METRIC:
            return list(dict.fromkeys(o.metric for o in self.observations))
        return [self.table.value] if isinstance(self.table.value, str) else list(self.table.value)

    def _headings(self, key: str) -> list[str]:
        """Values of a coordinate: in the order of the sweep, then as they appear."""
        swept = self.experiment.sweep
        listed: list[Any] = [*swept.grid.get(key, []), *swept.zip.get(key, [])]
        listed += [cell[key] for cell in swept.cells if key in cell]
        present = [_coordinate(record, key) for record in self.records]
        present += [o.labels[key] for o in self._chosen() if key in o.labels]
        found = dict.fromkeys(spelled(value) for value in [*listed, *present] if value is not None)
        known = {spelled(value) for value in present if value is not None}
        return [heading for heading in found if heading in known]

    def _chosen(self, metric: str | None = None) -> list[Observation]:
        wanted = [metric] if metric is not None else self._metrics()
        return [o for o in self.observations if o.metric in wanted and o.has(self.table.where)]

    def _section(self, metric: str, columns: list[str], published: list[Published], used: set[str]) -> Section:
        chosen = self._chosen(metric)
        present = [target for target in self._targets() if any(o.target == target for o in chosen)]
        lines: list[Line] = []
        for row in self._rows(chosen) if present else []:
            lines += [self._line(row, target, columns, chosen) for target in present]
            lines += _published_line(row, columns, published, used)
        absent = tuple(
            Absent(str(target.kind), _place(target), self._why("", "", target))
            for target in self._targets()
            if target not in present
        )
        first = chosen[0] if chosen else None
        unit, better = (first.unit, first.better) if first else ("", "target")
        return Section(metric, unit, better, tuple(lines), absent)

    def _targets(self) -> list[TargetName]:
        """Targets with records, then those the spec names that were not run."""
        there = targets(self.records)
        stated = [self.experiment.on] if isinstance(self.experiment.on, Target) else self.experiment.on
        missing = [
            TargetName(target.backend, target.hardware)
            for target in stated
            if target.backend != "auto" and len(stated) > 1
        ]
        return [*there, *(target for target in missing if target not in there)]

    def _rows(self, chosen: Sequence[Observation]) -> list[str]:
        headings = self._headings(self.table.rows)
        extra = self._extra(chosen)
        rows = list(dict.fromkeys(self._row_of(o, extra) for o in chosen))
        unseen = [h for h in headings if not any(row == h or row.startswith(f"{h}, ") for row in rows)]
        order = {heading: index for index, heading in enumerate(headings)}
        return sorted([*rows, *unseen], key=lambda row: order.get(_head(row, headings), len(order))) or [""]

    def _extra(self, chosen: Sequence[Observation]) -> list[str]:
        """Coordinates beside rows and columns that tell values apart, so that no two fall into one cell."""
        fixed = {self.table.rows, self.table.columns, *self.table.where}
        if "cell" in fixed:
            fixed |= {key for o in chosen for key in o.record.swept}
        values: dict[str, set[str]] = {}
        for observation in chosen:
            for key, value in observation.coordinates().items():
                values.setdefault(key, set()).add(spelled(value))
        return [key for key, found in values.items() if key not in fixed and len(found) > 1]

    def _row_of(self, observation: Observation, extra: Sequence[str]) -> str:
        own = _of(observation, self.table.rows) or ""
        more = [f"{short(key)} {spelled(v)}" for key in extra if (v := observation.coordinates().get(key)) is not None]
        return ", ".join(filter(None, [own, *more]))

    def _line(self, row: str, target: TargetName, columns: list[str], chosen: Sequence[Observation]) -> Line:
        extra = self._extra(chosen)
        here = [o for o in chosen if o.target == target and self._row_of(o, extra) == row]
        cells = tuple(self._cell(column, row, target, here) for column in columns)
        return Line(row, str(target.kind), _place(target), cells)

    def _cell(self, column: str, row: str, target: TargetName, here: Sequence[Observation]) -> CellView:
        found = [o for o in here if not self.table.columns or _of(o, self.table.columns) == column]
        if not found:
            return CellView(column, reason=self._why(row, column, target))
        observation = found[-1]
        base = counterpart(observation, self.table.baseline, self.observations) if self.table.baseline else None
        return CellView(
            column=column,
            figure=observation.figure,
            ratio=ratio(observation, base) if base is not None and base is not observation else None,
            baseline=base is observation,
            key=observation.record.key,
        )

    def _why(self, row: str, column: str, target: TargetName) -> str:
        """Why a cell has no value: what became of the trials that could have filled it."""
        of_target = [record for record in self.records if target_of(record) == target]
        if not of_target:
            return "not run"
        heading = _head(row, self._headings(self.table.rows))
        places = ((self.table.rows, heading), (self.table.columns, column))
        fitting = [r for r in of_target if all(_fits(r, key, heading) for key, heading in places)]
        bad = [record for record in fitting if record.state is not State.OK]
        if bad:
            return why_empty(bad[0])
        return "not reported" if fitting else "not in the sweep"


def _published_line(row: str, columns: list[str], published: list[Published], used: set[str]) -> Iterator[Line]:
    """The published row of the same name, if there is one: names are compared without regard to case."""
    here = [p for p in published if p.row.casefold() == row.casefold()]
    cells = []
    for column in columns:
        match = [p for p in here if column.casefold() in (p.column.casefold(), p.column_title.casefold())]
        cells.append(CellView(column, published=match[0]) if match else CellView(column, reason="not published"))
    matched = [cell.published for cell in cells if cell.published]
    if matched:
        used.update(p.path for p in matched)
        yield Line(row, "published", matched[0].place, tuple(cells))


def _place(target: TargetName) -> str:
    return target.hardware if target.backend == "emulated" else f"{target.hardware} ({target.backend})"


def _head(row: str, headings: Sequence[str]) -> str:
    """The row's own heading, without the further coordinates that follow it."""
    return next((h for h in headings if row == h or row.startswith(f"{h}, ")), row)


def _of(observation: Observation, key: str) -> str | None:
    try:
        return spelled(observation.coordinate(key))
    except KeyError:
        return None


def _coordinate(record: Record, key: str) -> Any:
    try:
        return record_coordinate(record, key)
    except KeyError:
        return None


def _fits(record: Record, key: str, heading: str) -> bool:
    """Whether a trial could have had a value under a heading; labels are not known before it ran."""
    if not key or not heading:
        return True
    value = _coordinate(record, key)
    return value is None or spelled(value) == heading
