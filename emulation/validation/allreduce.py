"""NCCL all-reduce on 2, 4 and 8 A100 of one node, every MiB from 1 to 1,024 (published with vTrain, MICRO'24).

Scored are *sizes* that were not timed (half of each table is fitted, the other half predicted) and *group sizes* that
were not timed (the whole table of one is predicted from those of the other two). A predictor is what a calibrated
profile would hold: a table of knots for each group size, read as the emulator's cost model reads it.
"""

from __future__ import annotations

import csv
import re
from typing import TYPE_CHECKING

from emulation.validation import Prediction, Row, Split, halves

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from emulation.collectives import CollectiveTable

FOLDER = "megatron-a100"
FILES = "allreduce_*gpu.csv"
NAME = re.compile(r"allreduce_(?P<chip>[a-z0-9]+)_(?P<ranks>\d+)gpu\.csv")
COLUMNS = ["size(B)", "count", "type", "time(ns)", "busbw(GB/s)", "time(ns)", "busbw(GB/s)"]
"""The first time is that of the out-of-place operation, which is the one predicted."""
SMALL = 16 * 2**20
STEP = 1.9e-6
"""Seconds of one step of a ring over NVLink: what `cost.tables.ring_step` finds in NCCL's tuner constants."""


def rows(folder: Path) -> list[Row]:
    """Every row of every table.

    Raises:
        ValueError: a table has other columns, or a row that is none; the message names file and line.
    """
    found: list[Row] = []
    for path in sorted((folder / FOLDER).glob(FILES)):
        name = NAME.fullmatch(path.name)
        if name is not None:
            found += _table_rows(path, name["chip"].upper(), int(name["ranks"]))
    return sorted(found, key=lambda row: (row.features["chip"], row.features["ranks"], row.features["bytes"]))


def splits(rows: Sequence[Row], seed: int) -> list[Split]:
    """Half of the sizes of each table; and each group size from the others, where there are at least two others."""
    fit, scored = halves(rows, seed)
    found = [Split("unseen sizes: a random half of each table", fit, scored, _labels(fit))]
    for family in dict.fromkeys(row.family for row in rows):
        own = [row for row in rows if row.family == family]
        others = [row for row in rows if row.family != family and row.features["chip"] == own[0].features["chip"]]
        counts = sorted({int(row.features["ranks"]) for row in others})
        if len(counts) > 1:
            named = f"unseen group size: {own[0].features['ranks']} from {' and '.join(map(str, counts))}"
            found.append(Split(f"{named} {own[0].features['chip']}", others, own, _sizes, drawn=False))
    return found


def fit(rows: Sequence[Row], seed: int) -> Callable[[Row], Prediction | None]:
    """Knots for each table, and quantiles of what they are off by in cross-validation on these rows."""
    from emulation.band import width
    from emulation.calibrate.knots import fit_table
    from emulation.cost.tables import read

    del seed
    tables: dict[str, list[CollectiveTable]] = {}
    for family in dict.fromkeys(row.family for row in rows):
        own = [row for row in rows if row.family == family]
        sweep = [(float(row.features["bytes"]), row.seconds) for row in own]
        table = fit_table(
            "all-reduce", int(own[0].features["ranks"]), "nvlink", sweep, grade="measured", source="nccl-tests"
        )
        tables.setdefault(str(own[0].features["chip"]), []).append(table)

    def predict(row: Row) -> Prediction | None:
        known, shape = tables.get(str(row.features["chip"]), []), (int(row.features["ranks"]), 1)
        found = read(known, "all-reduce", shape, "nvlink", float(row.features["bytes"]), step=STEP)
        if found is None:
            return None
        return Prediction.within(found.seconds, found.spread or width("collective", found.grade))

    return predict


def _sizes(row: Row) -> tuple[str]:
    return ("up to 16 MiB" if float(row.features["bytes"]) <= SMALL else "above 16 MiB",)


def _labels(fit: Sequence[Row]) -> Callable[[Row], tuple[str, ...]]:
    """Lines by size and table, for what lies between the sizes of its table that are fitted; the rest on its own."""
    ends: dict[str, list[float]] = {}
    for row in fit:
        ends.setdefault(row.family, []).append(float(row.features["bytes"]))

    def labels(row: Row) -> tuple[str, ...]:
        inside = min(ends[row.family]) <= float(row.features["bytes"]) <= max(ends[row.family])
        (size,) = _sizes(row)
        return (size, f"{size}, {row.family}") if inside else (f"{size}, beyond the fitted sizes",)

    return labels


def _table_rows(path: Path, chip: str, ranks: int) -> list[Row]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = csv.reader(file)
        header = next(lines, [])
        if header != COLUMNS:
            raise ValueError(f"{path}:1: expected the columns {','.join(COLUMNS)}, not {','.join(header)}")
        return [_row(path, lines.line_num, line, chip, ranks) for line in lines if line]


def _row(path: Path, number: int, line: Sequence[str], chip: str, ranks: int) -> Row:
    try:
        size, seconds = float(line[0]), float(line[3]) * 1e-9
    except (ValueError, IndexError):
        raise ValueError(
            f"{path}:{number}: expected a size in bytes and a time in ns, not {','.join(line)!r}"
        ) from None
    if size <= 0 or seconds <= 0:
        raise ValueError(f"{path}:{number}: a size and a time must be positive, not {','.join(line)!r}")
    return Row(f"{ranks} {chip}", {"chip": chip, "ranks": ranks, "bytes": size}, seconds)
