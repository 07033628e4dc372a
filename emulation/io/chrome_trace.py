"""Timelines as Chrome trace events, for Perfetto (ui.perfetto.dev) and chrome://tracing.

The format (Google, "Trace Event Format"): complete events (``ph: X``) with ``ts`` and ``dur`` in *microseconds*,
fractions allowed; metadata events (``ph: M``) that name processes and threads. Slices of one thread must nest, or
viewers drop them: what overlaps without nesting is put on further threads of the same name.

Files are deterministic: the same slices give the same bytes. Measured timelines use the same writer.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

MAX_EVENTS = 200_000
"""Above this viewers become slow; the earliest slices are kept, and the file says how many were left out."""
MICROSECONDS = 1e6


@dataclass(frozen=True)
class Slice:
    """A stretch of time on a timeline."""

    process: str
    thread: str
    name: str
    start: float
    """Seconds."""
    duration: float
    """Seconds."""
    args: Mapping[str, Any] = field(default_factory=dict)


def write(path: Path, slices: Iterable[Slice], *, limit: int = MAX_EVENTS) -> None:
    """Write a trace; compressed if the name ends in `.gz`."""
    text = json.dumps(document(slices, limit=limit), separators=(",", ":"), sort_keys=True)
    data = text.encode()
    # gzip stamps its header with the clock unless told otherwise.
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)


def document(slices: Iterable[Slice], *, limit: int = MAX_EVENTS) -> dict[str, Any]:
    """The trace as JSON values."""
    ordered = sorted(enumerate(slices), key=lambda item: (item[1].start, -item[1].duration, item[0]))
    kept = [one for _, one in ordered[:limit]]
    processes = {name: number for number, name in enumerate(sorted({one.process for one in kept}), start=1)}
    rows = list(_rows(kept))
    other = {"left_out": str(len(ordered) - len(kept))} if len(ordered) > len(kept) else {}
    return {
        "displayTimeUnit": "ns",
        "otherData": other,
        "traceEvents": [*_metadata(processes, rows), *_events(processes, rows)],
    }


Row = tuple[str, str, int, list[Slice]]
"""Process, thread name, thread number, slices that nest."""


def _rows(slices: Iterable[Slice]) -> Iterator[Row]:
    """Slices (in order of start, longer first) on as few rows of their thread as nesting allows."""
    threads: dict[tuple[str, str], list[tuple[list[int], list[Slice]]]] = {}
    for one in slices:
        rows = threads.setdefault((one.process, one.thread), [])
        start, end = _ticks(one.start), _ticks(one.start + one.duration)
        for open_ends, row in rows:
            while open_ends and open_ends[-1] <= start:
                open_ends.pop()
            if not open_ends or end <= open_ends[-1]:
                open_ends.append(end)
                row.append(one)
                break
        else:
            rows.append(([end], [one]))
    numbers: dict[str, int] = {}
    for process, thread in sorted(threads):
        for _, row in threads[process, thread]:
            numbers[process] = numbers.get(process, 0) + 1
            yield process, thread, numbers[process], row


def _ticks(seconds: float) -> int:
    """Picoseconds, so that ends and starts that meet compare equal."""
    return round(seconds * 1e12)


def _metadata(processes: Mapping[str, int], rows: Iterable[Row]) -> Iterator[dict[str, Any]]:
    for name, number in processes.items():
        yield {"ph": "M", "name": "process_name", "pid": number, "tid": 0, "args": {"name": name}}
        yield {"ph": "M", "name": "process_sort_index", "pid": number, "tid": 0, "args": {"sort_index": number}}
    for process, thread, number, _ in rows:
        place = {"pid": processes[process], "tid": number}
        yield {"ph": "M", "name": "thread_name", **place, "args": {"name": thread}}
        yield {"ph": "M", "name": "thread_sort_index", **place, "args": {"sort_index": number}}


def _events(processes: Mapping[str, int], rows: Iterable[Row]) -> Iterator[dict[str, Any]]:
    for process, thread, number, row in rows:
        for one in row:
            start = _ticks(one.start)
            yield {
                "ph": "X",
                "name": one.name,
                "cat": thread,
                "pid": processes[process],
                "tid": number,
                "ts": start / MICROSECONDS,
                "dur": (_ticks(one.start + one.duration) - start) / MICROSECONDS,
                "args": dict(one.args),
            }
