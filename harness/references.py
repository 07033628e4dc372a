"""Published figures, cell by cell.

A paper's table becomes data: `results/published/<paper>.yaml` holds tables of rows of columns, and every figure is
addressed as `paper/table/row/column` (`rdma/abstract/device/speedup_over_grpc`). Beside the figure stands what a
comparison needs to know: its unit, whether it is the value itself or an upper bound ("up to 25 x"), how exactly it
could be read off a drawing, under which conditions it was obtained, and where in the paper it is printed. A figure
that could not be read is `null`; it is never guessed.

Nothing here is ever mixed with results: `published` values live in this module alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

from pydantic import Field

from emulation.units import Fraction, Strict
from harness import project
from harness.errors import SpecError, nearest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

ANY_HARDWARE = "any"
"""Value of `conditions.hardware` for figures that the machine cannot change, such as the size of a data set."""

Entry = TypeVar("Entry")

Key = Annotated[str, Field(pattern=r"^[^/]+$", min_length=1)]


class Bound(StrEnum):
    """What a published figure says about the quantity."""

    EXACT = "exact"
    UPPER = "upper"
    """"Up to": the best case somebody saw; no average is held against it."""
    LOWER = "lower"
    """"At least" or "more than"."""


BoundName = Literal["exact", "upper", "lower"]


class Conditions(Strict):
    """The circumstances of a published figure; null where the paper, or what could be read of it, does not say."""

    hardware: str | None = None
    """In the paper's words; `any` where the machine cannot change the figure."""
    devices: list[str] = Field(default_factory=list)
    """Words that must all occur in the description of a machine for it to count as the same (`P100`)."""
    device_count: int | None = None
    """How many accelerators; compared with those found."""
    precision: str | None = None
    batch: int | None = None
    dataset: str | None = None
    software: str | None = None


class Source(Strict):
    """Where a figure is printed."""

    place: str
    """`abstract`, `Table 3`, `Figure 9, read off, +-5 %`."""
    page: int | None = None
    note: str = ""


class Column(Strict):
    """What the figures of one column have in common."""

    title: str = ""
    unit: str | None = None
    bound: BoundName | None = None


class Cell(Strict):
    """One figure, where it differs from its table's defaults; a bare number or null stands for `{value: ...}`."""

    value: float | None = None
    unit: str | None = None
    bound: BoundName | None = None
    tolerance: Fraction | None = None
    """How far the figure may be off because it was read from a drawing."""
    note: str = ""
    source: Source | None = None
    conditions: Conditions | None = None


class PublishedTable(Strict):
    """One table, figure or passage of a paper."""

    title: str
    source: Source
    unit: str = ""
    bound: BoundName = "exact"
    tolerance: Fraction = 0.0
    note: str = ""
    conditions: Conditions | None = None
    columns: dict[Key, Column] = Field(default_factory=dict)
    rows: dict[Key, dict[Key, float | Cell | None]]


class Paper(Strict):
    """Bibliography of what is quoted."""

    title: str
    venue: str
    citation: str
    url: str
    note: str = ""


class PaperFile(Strict):
    """A whole file under results/published."""

    schema_: Literal[1] = Field(alias="schema")
    paper: Paper
    conditions: Conditions = Field(default_factory=Conditions)
    """For every table that does not state its own."""
    tables: dict[Key, PublishedTable]


@dataclass(frozen=True)
class Published:
    """One published figure with everything needed to compare with it and to cite it."""

    path: str
    """`paper/table/row/column`."""
    value: float | None
    unit: str
    bound: Bound
    tolerance: float
    note: str
    conditions: Conditions
    source: Source
    paper: Paper
    table_title: str
    column_title: str

    @property
    def row(self) -> str:
        """Third part of the path."""
        return self.path.split("/")[2]

    @property
    def column(self) -> str:
        """Last part of the path."""
        return self.path.split("/")[3]

    @property
    def text(self) -> str:
        """The figure for a reader: `up to 25 x`, `4.28 s`, `not known`."""
        if self.value is None:
            return "not known"
        words = {Bound.EXACT: "", Bound.UPPER: "up to ", Bound.LOWER: "at least "}
        about = "about " if self.tolerance and self.bound is Bound.EXACT else ""
        return f"{words[self.bound]}{about}{self.value:g} {self.unit}".rstrip()

    @property
    def place(self) -> str:
        """Where it is printed: `abstract`, `Table 3, p. 7`."""
        page = f", p. {self.source.page}" if self.source.page is not None else ""
        return f"{self.source.place}{page}"


class References:
    """Every published figure the project ships, read paper by paper when first asked for."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._files: dict[str, PaperFile] = {}

    def __repr__(self) -> str:
        return f"References({str(self.directory)!r}, papers={self.papers()})"

    def papers(self) -> list[str]:
        """Keys of the papers, sorted."""
        return sorted(path.stem for path in self.directory.glob("*.yaml"))

    def paper(self, key: str) -> PaperFile:
        """One paper's file.

        Raises:
            SpecError: there is no such file (with the nearest key), or it is malformed (with positions).
        """
        if key not in self._files:
            if key not in self.papers():
                raise _missing("paper", key, self.papers(), within="results/published")
            self._files[key] = _read(self.directory / f"{key}.yaml")
        return self._files[key]

    def find(self, path: str) -> Published:
        """The figure at `paper/table/row/column`.

        Raises:
            SpecError: a part does not exist; the message names the nearest part that does.
        """
        parts = path.split("/")
        if len(parts) != 4:
            raise SpecError.single(f"{path!r} does not name a published figure", expected="paper/table/row/column")
        found = self.select(path)
        return found[0]

    def select(self, path: str) -> list[Published]:
        """All figures below `paper/table`, `paper/table/row` or at `paper/table/row/column`, in the file's order.

        Raises:
            SpecError: a part does not exist; the message names the nearest part that does.
        """
        parts = path.split("/")
        if not 2 <= len(parts) <= 4:
            raise SpecError.single(
                f"{path!r} does not name published figures", expected="paper/table, paper/table/row or .../column"
            )
        file = self.paper(parts[0])
        table = _entry(file.tables, "table", parts[1], within=parts[0])
        rows = [parts[2]] if len(parts) > 2 else list(table.rows)
        found: list[Published] = []
        for row in rows:
            cells = _entry(table.rows, "row", row, within="/".join(parts[:2]))
            columns = [parts[3]] if len(parts) > 3 else list(cells)
            for column in columns:
                cell = _entry(cells, "column", column, within="/".join([*parts[:2], row]))
                found.append(_published(parts[0], file, parts[1], row, column, cell))
        return found

    def names(self) -> list[str]:
        """Path of every figure, paper by paper, in the files' order."""
        return list(self._paths())

    def _paths(self) -> Iterator[str]:
        for key in self.papers():
            for table, content in self.paper(key).tables.items():
                for row, cells in content.rows.items():
                    for column in cells:
                        yield f"{key}/{table}/{row}/{column}"


def load_all(directory: Path | None = None) -> References:
    """The published figures of the project (or of another directory)."""
    return References(directory or project.published())


def _published(key: str, file: PaperFile, name: str, row: str, column: str, cell: float | Cell | None) -> Published:
    own = cell if isinstance(cell, Cell) else Cell(value=cell)
    table = file.tables[name]
    common = table.columns.get(column, Column())
    return Published(
        path=f"{key}/{name}/{row}/{column}",
        value=own.value,
        unit=next(u for u in (own.unit, common.unit, table.unit) if u is not None),
        bound=Bound(own.bound or common.bound or table.bound),
        tolerance=own.tolerance if own.tolerance is not None else table.tolerance,
        note=own.note or table.note,
        conditions=own.conditions or table.conditions or file.conditions,
        source=own.source or table.source,
        paper=file.paper,
        table_title=table.title,
        column_title=common.title or column,
    )


def _entry(mapping: Mapping[str, Entry], noun: str, name: str, *, within: str) -> Entry:
    if name not in mapping:
        raise _missing(noun, name, list(mapping), within=within)
    return mapping[name]


def _missing(noun: str, name: str, choices: list[str], *, within: str) -> SpecError:
    listed = ", ".join(choices[:12]) + (", ..." if len(choices) > 12 else "")
    return SpecError.single(
        f"no {noun} {name!r} in {within}", expected=f"one of: {listed}", suggestion=nearest(name, choices)
    )


def _read(path: Path) -> PaperFile:
    from harness.load import load_yaml_model

    return load_yaml_model(path, PaperFile)
