"""Records as one long table for analysis: a row a sample, every row labelled with its kind and its hardware.

Equal records give equal bytes, whatever the order they come in.
"""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING, Any

from harness.errors import EnvironmentLacks, SpecError, StoreError
from harness.measure import summarise
from harness.store import write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from harness.records import Record, Value

COLUMNS: dict[str, type] = {
    "spec": str,
    "cell": str,
    "key": str,
    "kind": str,
    "backend": str,
    "hardware": str,
    "machine": str,
    "engine": str,
    "engine_version": str,
    "state": str,
    "metric": str,
    "labels": str,
    "unit": str,
    "better": str,
    "rank": int,
    "sample": int,
    "value": float,
    "median": float,
    "low": float,
    "high": float,
    "n": int,
    "method": str,
    "band_low": float,
    "band_high": float,
    "plan_digest": str,
    "model_version": str,
    "grade": str,
    "seed": int,
}
"""Names and types of the columns. A trial without values has one row, whose metric is empty."""
FORMATS = (".csv", ".parquet")


def export(records: Iterable[Record], path: Path) -> int:
    """Write records to a `.csv` or `.parquet` file.

    Returns:
        How many rows it has.

    Raises:
        SpecError: another kind of file was asked for.
        EnvironmentLacks: Parquet was asked for and pyarrow is not installed.
        StoreError: the file cannot be written.
    """
    if path.suffix not in FORMATS:
        raise SpecError.single(
            f"cannot export to {path.name!r}", expected=f"a file name that ends in {' or '.join(FORMATS)}"
        )
    table = list(rows(records))
    content = _csv(table) if path.suffix == ".csv" else _parquet(table)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror}") from error
    return len(table)


def rows(records: Iterable[Record]) -> Iterator[dict[str, Any]]:
    """The rows, in the order of spec, cell, key and then as measured."""
    for record in sorted(records, key=lambda r: (r.spec, r.cell, r.key)):
        about = {
            "spec": record.spec,
            "cell": record.cell,
            "key": record.key,
            "kind": record.kind.value,
            "backend": record.target.backend,
            "hardware": record.target.hardware,
            # What the spec takes the machine to be, and what it was: an emulated value has no machine.
            "machine": record.provenance.hardware.get("cpu") if record.target.backend != "emulated" else None,
            "engine": record.engine,
            "engine_version": record.engine_version,
            "state": record.state.value,
            "plan_digest": record.plan_digest,
            "model_version": record.emulation.model_version if record.emulation else None,
            "grade": record.emulation.grade if record.emulation else None,
            "seed": record.seed,
        }
        if not record.values:
            yield _whole(about)
        for value in record.values:
            yield from (_whole({**about, **row}) for row in _samples(value))


def _samples(value: Value) -> Iterator[dict[str, Any]]:
    about: dict[str, Any] = {
        "metric": value.name,
        "labels": json.dumps(value.labels, sort_keys=True, ensure_ascii=False),
        "unit": value.unit,
        "better": value.better,
        "rank": value.rank,
        "n": len(value.samples),
    }
    if value.band is not None:
        about |= {"band_low": value.band[0], "band_high": value.band[1]}
    if not any(s != s for s in value.samples):
        summary = summarise(value.samples)
        about |= {"median": summary.median, "low": summary.low, "high": summary.high, "method": summary.method}
    for number, sample in enumerate(value.samples):
        yield {**about, "sample": number, "value": sample}


def _whole(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row.get(name) for name in COLUMNS}


def _csv(table: list[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(COLUMNS), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue().encode()


def _parquet(table: list[dict[str, Any]]) -> bytes:
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError:
        raise EnvironmentLacks("Parquet needs pyarrow: pip install 'harness[report]', or export to .csv") from None
    types = {str: arrow.string(), int: arrow.int64(), float: arrow.float64()}
    schema = arrow.schema([(name, types[python]) for name, python in COLUMNS.items()])
    buffer = arrow.BufferOutputStream()
    parquet.write_table(arrow.Table.from_pylist(table, schema=schema), buffer, compression="zstd")
    return bytes(buffer.getvalue().to_pybytes())
