"""NCCL collectives on 2, 4 and 8 V100 of one node, and messages between two of them (published with Aceso, EuroSys'24).

Other people's measurements on other hardware than `allreduce`: half of the sizes of each operation and group size are
fitted, the other half predicted. Sizes are those of the tensors of five GPT models. A second of 10^6 stands for a run
that failed there, and is left out; sizes timed for several models count once, with their median.

Group sizes are not predicted from one another: the eight V100 are joined directly, and two of them share fewer links.
"""

from __future__ import annotations

import csv
from statistics import median
from typing import TYPE_CHECKING

from emulation.validation import Prediction, Row, Split, halves

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from emulation.collectives import CollectiveTable

FOLDER = "aceso-v100"
COLLECTIVES = "gpt_collectives.csv"
MESSAGES = {"p2p_intra_node.csv": "within a node", "p2p_inter_node.csv": "between nodes"}
COLUMNS = ["model", "collective", "file_suffix", "data_size(MB)", "time(ms)"]
FAILED = 1e6
"""Milliseconds and more that stand for no result."""
MEGABYTE = 10**6


def rows(folder: Path) -> list[Row]:
    """One row for each operation, group size and size, and one for each message size.

    Raises:
        ValueError: a file has another layout; the message names file and line.
    """
    path = folder / FOLDER / COLLECTIVES
    found = _collectives(path) if path.is_file() else []
    for name, where in MESSAGES.items():
        if (folder / FOLDER / name).is_file():
            found += _messages(folder / FOLDER / name, where)
    return found


def splits(rows: Sequence[Row], seed: int) -> list[Split]:
    """Half of the sizes of each operation and group."""
    fit, scored = halves(rows, seed)
    return [Split("unseen sizes: a random half of each table", fit, scored)]


def fit(rows: Sequence[Row], seed: int) -> Callable[[Row], Prediction | None]:
    """Knots for each family, and quantiles of what they are off by in cross-validation on these rows."""
    from emulation.band import width
    from emulation.calibrate.knots import fit_table
    from emulation.cost.tables import read

    del seed
    tables: dict[str, CollectiveTable] = {}
    for family in dict.fromkeys(row.family for row in rows):
        own = [row for row in rows if row.family == family]
        sweep = [(float(row.features["bytes"]), row.seconds) for row in own]
        op, ranks = str(own[0].features["op"]), int(own[0].features["ranks"])
        tables[family] = fit_table(op, ranks, "nvlink", sweep, grade="measured", source="aceso")

    def predict(row: Row) -> Prediction | None:
        table = tables.get(row.family)
        if table is None:
            return None
        found = read([table], table.op, (table.ranks, 1), "nvlink", float(row.features["bytes"]))
        assert found is not None
        return Prediction.within(found.seconds, found.spread or width("collective", found.grade))

    return predict


def _collectives(path: Path) -> list[Row]:
    times: dict[tuple[str, int, float], list[float]] = {}
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = csv.reader(file)
        header = next(lines, [])
        if header != COLUMNS:
            raise ValueError(f"{path}:1: expected the columns {','.join(COLUMNS)}, not {','.join(header)}")
        for line in lines:
            try:
                _, op, suffix, size, time = line
                key, milliseconds = (op.replace("_", "-"), int(suffix.removesuffix("gpus")), float(size)), float(time)
            except ValueError:
                raise ValueError(
                    f"{path}:{lines.line_num}: expected {','.join(COLUMNS)}, not {','.join(line)!r}"
                ) from None
            if milliseconds < FAILED:
                times.setdefault(key, []).append(milliseconds)
    return [
        Row(f"{op}, {ranks} V100", {"op": op, "ranks": ranks, "bytes": size * MEGABYTE}, median(found) * 1e-3)
        for (op, ranks, size), found in sorted(times.items())
    ]


def _messages(path: Path, where: str) -> list[Row]:
    """The first line has sizes in MB, the second rates in GB/s."""
    try:
        sizes, rates = ([float(cell) for cell in line.split(",")] for line in path.read_text("utf-8-sig").splitlines())
        pairs = list(zip(sizes, rates, strict=True))
    except ValueError:
        raise ValueError(f"{path}:1: expected a line of sizes in MB, then one of as many rates in GB/s") from None
    return [
        Row(f"send, {where}", {"op": "send", "ranks": 2, "bytes": size * MEGABYTE}, size * MEGABYTE / (rate * 1e9))
        for size, rate in pairs
    ]
