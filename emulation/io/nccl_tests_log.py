"""Measured collectives: the tables that nccl-tests prints, and the same as CSV.

The program (NVIDIA nccl-tests, src/common.cu) prints a line per size with two measurements, out of place and in place:
time, algorithm bandwidth (size / time), bus bandwidth (times a factor of the operation and the number of ranks,
doc/PERFORMANCE.md) and the number of wrong values. `size` is the larger of what a rank sends and receives, which is
`nbytes` of a workload's collective. Which columns there are depends on the version, so they are taken from the header.
"""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from emulation.io import FormatError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from emulation.collectives import CollectiveTable
    from emulation.graph import Op
    from emulation.wiring import LinkKind

PROGRAMS: dict[str, Op] = {
    "all_reduce": "all-reduce",
    "all_gather": "all-gather",
    "reduce_scatter": "reduce-scatter",
    "alltoall": "all-to-all",
    "broadcast": "broadcast",
    "reduce": "reduce",
}
UNITS = {"(ns)": 1e-9, "(us)": 1e-6, "(ms)": 1e-3, "(s)": 1.0}
TOLERANCE = 0.03
"""By how much the printed bus bandwidth may differ from the one computed, beside the rounding of three digits."""

_PROGRAM = re.compile(r"\b(\w+?)_perf(?:_mpi)?\b")
_RANK = re.compile(r"#?\s+Rank\s+(\d+)\s+(?:Group\s+(\d+)\s+)?Pid\s+\d+\s+on\s+(\S+)")
_HEADER = re.compile(r"#?\s*size\s+count\b")
_FAILED = re.compile(r"Out of bounds values\s*:\s*(\d+)\s+FAILED")


@dataclass(frozen=True)
class CollectiveMeasurement:
    """One collective, timed."""

    op: Op
    ranks: int
    bytes: int
    """The full buffer, as `nbytes` of a workload's collective."""
    seconds: float
    busbw: float
    """Bus bandwidth in bytes per second, as printed."""
    in_place: bool
    hosts: int = 1
    """Over which the ranks were spread, equally many on each; 1 where the text does not say."""


def bus_factor(op: Op, ranks: int) -> float:
    """Bus bandwidth over algorithm bandwidth (nccl-tests, doc/PERFORMANCE.md)."""
    match op:
        case "all-reduce":
            return 2 * (ranks - 1) / ranks
        case "all-gather" | "reduce-scatter" | "all-to-all":
            return (ranks - 1) / ranks
    return 1.0


def recognises(text: str) -> bool:
    """Whether a text looks like such a table, or its CSV form."""
    return any(_HEADER.match(line) or _is_csv_header(line) for line in text.splitlines())


def read(path: Path, *, op: Op | None = None, ranks: int | None = None) -> list[CollectiveMeasurement]:
    """Read the output of one of nccl-tests' programs, or a CSV table with the columns size, time and busbw.

    Args:
        path: the file.
        op: the operation, where the text does not name the program; a CSV table's file name may (`allreduce_...`).
        ranks: their number, where the text does not list them; a CSV table's file name may (`..._8gpu.csv`).

    Raises:
        FormatError: a line that cannot be read, wrong values, an operation that is not modelled, a bus bandwidth that
            does not follow from the time. Names file and line.
    """
    lines = path.read_text("utf-8", errors="replace").splitlines()
    table = _Csv(path, lines) if any(map(_is_csv_header, lines[:1])) else _Log(path, lines)
    listed = table.ranks()
    known_op, known_ranks = op or table.op(), ranks or listed
    if known_op is None:
        raise FormatError(f"{path}: does not say which collective was timed; name it, such as all-reduce")
    if not known_ranks:
        raise FormatError(f"{path}: does not say how many ranks took part; give their number")
    found = list(table.measurements(known_op, known_ranks))
    if not found:
        raise FormatError(f"{path}: no line of measurements")
    return found


def tables(
    measured: Iterable[CollectiveMeasurement], *, link: LinkKind, source: str, in_place: bool = False
) -> list[CollectiveTable]:
    """Measurements as tables of a profile: one per operation and group of ranks.

    Args:
        measured: rows, of one or several files.
        link: the farthest kind of link that was crossed.
        source: key into the profile's sources.
        in_place: which of the two measurements to take. Size 0 is left out.
    """
    from emulation.calibrate.knots import fit_table

    sweeps: dict[tuple[Op, int, int], list[tuple[float, float]]] = {}
    for row in measured:
        if row.in_place == in_place and row.bytes and row.seconds:
            sweeps.setdefault((row.op, row.ranks, row.hosts), []).append((row.bytes, row.seconds))
    return [
        fit_table(op, ranks, link, rows, grade="measured", source=source, hosts=hosts)
        for (op, ranks, hosts), rows in sorted(sweeps.items())
    ]


class _Table:
    """Lines of one file, and how to turn a row into measurements."""

    def __init__(self, path: Path, lines: Sequence[str]) -> None:
        self.path = path
        self.lines = lines

    def refuse(self, number: int, what: str) -> FormatError:
        return FormatError(f"{self.path}:{number}: {what}")

    def row(self, number: int, cells: Sequence[str], columns: Sequence[str], unit: float, op: Op, ranks: int) -> Any:
        """The one or two measurements of a line, out of place first."""
        if len(cells) < len(columns):
            raise self.refuse(number, f"{len(cells)} columns, where the header has {len(columns)}")
        size = self._number(number, "size", cells[columns.index("size")], whole=True)
        starts = [at for at, name in enumerate(columns) if name == "time"]
        for which, at in enumerate(starts):
            end = starts[which + 1] if which + 1 < len(starts) else len(columns)
            cell = dict(zip(columns[at:end], cells[at:end], strict=True))
            seconds = self._number(number, "time", cell["time"]) * unit
            busbw = self._number(number, "busbw", cell["busbw"]) * 1e9
            wrong = cell.get("wrong", "0")
            if wrong != "N/A" and self._number(number, "wrong values", wrong) > 0 and "#wrong" in self.header:
                raise self.refuse(number, f"{wrong} wrong values: the run failed its own check")
            found = CollectiveMeasurement(op, ranks, int(size), seconds, busbw, which == 1, self.hosts(ranks))
            self._check(number, found)
            yield found

    header = ""

    def hosts(self, ranks: int) -> int:
        """How many hosts are named."""
        del ranks
        return 1

    def _number(self, number: int, name: str, text: str, *, whole: bool = False) -> float:
        try:
            value = int(text) if whole else float(text)
        except ValueError:
            raise self.refuse(number, f"{name}: {text!r} is not a number") from None
        if not 0 <= value < float("inf"):
            raise self.refuse(number, f"{name}: {text} is not possible")
        return value

    def _check(self, number: int, row: CollectiveMeasurement) -> None:
        """Refuse a table that was taken for another operation or number of ranks than it is of."""
        if not row.bytes or not row.seconds:
            return
        computed = row.bytes / row.seconds * bus_factor(row.op, row.ranks)
        # Two digits after the point are printed, in GB/s, and three digits of the time.
        if abs(computed - row.busbw) > TOLERANCE * computed + 0.01e9:
            raise self.refuse(
                number,
                f"busbw {row.busbw / 1e9:g} GB/s does not follow from size and time, which give {computed / 1e9:.3g} "
                f"GB/s for {row.op} of {row.ranks} ranks",
            )


class _Log(_Table):
    """What the programs print."""

    def op(self) -> Op | None:
        for line in self.lines:
            for name in _PROGRAM.findall(line):
                if name in PROGRAMS:
                    return PROGRAMS[name]
                if name in {"sendrecv", "gather", "scatter", "hypercube", "alltoallv"}:
                    raise FormatError(f"{self.path}: {name} is not modelled; there is {', '.join(PROGRAMS)}")
        return None

    names: frozenset[str] = frozenset()

    def hosts(self, ranks: int) -> int:
        """How many hosts are named, if they can have equally many ranks."""
        return len(self.names) if self.names and ranks % len(self.names) == 0 else 1

    def ranks(self) -> int:
        groups: dict[str, list[int]] = {}
        for number, line in enumerate(self.lines, start=1):
            if rank := _RANK.match(line):
                group = groups.setdefault(rank[2] or "0", [])
                if int(rank[1]) in group:
                    raise self.refuse(
                        number,
                        f"rank {rank[1]} is listed twice: several programs that know nothing of one another, as when "
                        "nccl-tests is built without MPI=1",
                    )
                group.append(int(rank[1]))
                self.names |= {rank[3]}
        return len(next(iter(groups.values()), []))

    def measurements(self, op: Op, ranks: int) -> Iterator[CollectiveMeasurement]:
        columns: list[str] = []
        unit = UNITS["(us)"]
        for number, line in enumerate(self.lines, start=1):
            text = line.lstrip("# ")
            if failed := _FAILED.search(line):
                raise self.refuse(number, f"{failed[1]} values out of bounds: the run failed its own check")
            if _HEADER.match(line):
                self.header = line
                columns = [name.lstrip("#").replace("error", "wrong") for name in text.split()]
                if not 0 < columns.count("time") == columns.count("busbw"):
                    raise self.refuse(number, "the header lacks a column time or busbw")
            elif columns and text.startswith("(B)"):
                unit = next((UNITS[word] for word in text.split() if word in UNITS), unit)
            elif columns and re.match(r"\s*\d+\s+\d+\s", line) and not line.startswith("#"):
                yield from self.row(number, line.split(), columns, unit, op, ranks)
            elif columns and re.match(r"\s*\d", line):
                raise self.refuse(number, f"not a line of measurements: {line.strip()[:60]!r}")


class _Csv(_Table):
    """A table with a header such as `size(B),count,type,time(ns),busbw(GB/s),time(ns),busbw(GB/s)`."""

    def op(self) -> Op | None:
        plain = self.path.name.replace("_", "").replace("-", "").lower()
        names = {name.replace("_", ""): op for name, op in PROGRAMS.items()}
        return next((op for name, op in sorted(names.items(), key=lambda item: -len(item[0])) if name in plain), None)

    def ranks(self) -> int:
        found = re.search(r"(\d+)\s*gpu", self.path.name.lower())
        return int(found[1]) if found else 0

    def measurements(self, op: Op, ranks: int) -> Iterator[CollectiveMeasurement]:
        rows = csv.reader(io.StringIO("\n".join(self.lines)))
        header = next(rows)
        columns = [name.partition("(")[0].strip() for name in header]
        unit = next(UNITS.get(f"({name.partition('(')[2]}", 0.0) for name in header if name.startswith("time"))
        if not unit:
            raise self.refuse(1, f"the unit of time in {header} is none of {', '.join(UNITS)}")
        if header.count("busbw(GB/s)") != columns.count("time"):
            raise self.refuse(1, "the header lacks a column busbw(GB/s)")
        for cells in rows:
            if cells:
                yield from self.row(rows.line_num, cells, columns, unit, op, ranks)


def _is_csv_header(line: str) -> bool:
    return line.startswith("size(B),") and ",time(" in line
