"""The tables as CSV (RFC 4180), one line a cell, for a spreadsheet or a data frame."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.judging.tables import CellView, Line, Section, TableView
    from harness.report.content import Content

COLUMNS = (
    "table",
    "metric",
    "row",
    "column",
    "kind",
    "where",
    "value",
    "low",
    "high",
    "unit",
    "n",
    "interval",
    "ratio",
    "ratio_low",
    "ratio_high",
    "published_path",
    "published_bound",
    "reason",
    "key",
)


def render(content: Content) -> str:
    """Every cell of every table, then the published claims that belong to none."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, restval="", lineterminator="\r\n")
    writer.writeheader()
    for row in _rows(content):
        writer.writerow({name: _safe(value) for name, value in row.items()})
    return stream.getvalue()


def _rows(content: Content) -> Iterator[dict[str, object]]:
    for table in content.tables:
        for section in table.sections:
            for line in section.lines:
                for cell in line.cells:
                    yield _row(table, section, line, cell)
            for absent in section.absent:
                yield {
                    "table": table.title,
                    "metric": section.metric,
                    "kind": absent.kind,
                    "where": absent.place,
                    "reason": absent.reason,
                }
        for claim in table.claims:
            yield {
                "table": table.title,
                "row": claim.row,
                "column": claim.column,
                "kind": "published",
                "where": claim.place,
                "value": claim.value,
                "unit": claim.unit,
                "published_path": claim.path,
                "published_bound": str(claim.bound),
            }


def _row(table: TableView, section: Section, line: Line, cell: CellView) -> dict[str, object]:
    row: dict[str, object] = {
        "table": table.title,
        "metric": section.metric,
        "row": line.row,
        "column": cell.column,
        "kind": line.kind,
        "where": line.place,
        "reason": cell.reason,
        "key": cell.key,
    }
    if cell.figure is not None:
        figure = cell.figure
        row |= {"value": figure.value, "low": figure.low, "high": figure.high, "unit": figure.unit, "n": figure.n}
        row["interval"] = figure.method
    if cell.ratio is not None:
        row |= {"ratio": cell.ratio.value, "ratio_low": cell.ratio.low, "ratio_high": cell.ratio.high}
    if cell.published is not None:
        published = cell.published
        row |= {"value": published.value, "unit": published.unit, "published_path": published.path}
        row["published_bound"] = str(published.bound)
    return row


def _safe(value: object) -> object:
    # A spreadsheet runs what begins with one of these; text from a spec must not become a formula.
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return f"'{value}"
    return "" if value is None else value
