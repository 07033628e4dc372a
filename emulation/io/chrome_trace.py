"""Timelines as Chrome trace events, for Perfetto (ui.perfetto.dev) and chrome://tracing.

The format (Google, "Trace Event Format"): complete events (``ph: X``) with ``ts`` and ``dur`` in *microseconds*,
fractions allowed, whatever ``displayTimeUnit`` says; metadata events (``ph: M``) that name processes and threads;
arrows (``ph: s`` and ``f``) from a slice to a slice; counters (``ph: C``). Slices of one thread must nest, or viewers
drop them: what overlaps without nesting is put on further threads of the same name.

A trace may be of any length and is taken from an iterator; no more than the cap is ever held. What does not fit is
counted, and the file says how much it was. Files are deterministic: the same slices give the same bytes. Measured
timelines use the same writer.
"""

from __future__ import annotations

import gzip
import heapq
import io
import json
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

MAX_EVENTS = 200_000
"""Above this viewers become slow; the earliest events are kept, and the file says how many were left out."""
MICROSECONDS = 1e6
EVENTS_WITH_ARROW = 4
"""A slice, its other end, and the two ends of the arrow between them."""


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
    to: str = ""
    """Process that receives what this slice sends: it gets a slice of its own, and an arrow leads there."""

    @property
    def events(self) -> int:
        """How many events of a file it takes."""
        return EVENTS_WITH_ARROW if self.to else 1


@dataclass(frozen=True)
class Level:
    """A quantity that holds from a moment until the next `Level` of its name."""

    process: str
    name: str
    start: float
    """Seconds."""
    value: float
    unit: str

    duration = 0.0
    events = 1


def write(
    path: Path,
    slices: Iterable[Slice],
    *,
    levels: Iterable[Level] = (),
    names: Mapping[str, str] | None = None,
    limit: int = MAX_EVENTS,
) -> None:
    """Write a trace; compressed if the name ends in `.gz`.

    Args:
        path: the file.
        slices: in any order.
        levels: of counters, in any order.
        names: process -> name to show, as in `host0/gpu0 (x128)` for one that stands for many. Of several that are
            shown under one name, the first is written and the others are left away.
        limit: most events in the file, names of processes and threads not counted.
    """
    trace = _Trace(chain(slices, levels), names or {}, limit)
    with _opened(path) as file:
        # Keys in the order that sorting would give: the same trace, however written, has the same bytes.
        encode = json.JSONEncoder(separators=(",", ":"), sort_keys=True).encode
        head = encode({"displayTimeUnit": "ns", "otherData": trace.other})
        file.write(f'{head[:-1]},"traceEvents":[')
        for number, event in enumerate(trace.events()):
            file.write(("," if number else "") + encode(event))
        file.write("]}")


def document(
    slices: Iterable[Slice],
    *,
    levels: Iterable[Level] = (),
    names: Mapping[str, str] | None = None,
    limit: int = MAX_EVENTS,
) -> dict[str, Any]:
    """The trace as JSON values; see `write`."""
    trace = _Trace(chain(slices, levels), names or {}, limit)
    return {"displayTimeUnit": "ns", "otherData": trace.other, "traceEvents": list(trace.events())}


Row = tuple[str, str, int, "list[_Drawn]"]
"""Process, thread name, thread number, slices that nest."""


@dataclass(frozen=True)
class _Drawn:
    """A slice on its row, and the arrow that leaves or reaches it."""

    slice: Slice
    arrow: int = 0
    """Number of the arrow; 0 for none."""
    arrives: bool = False


class _Trace:
    """What is kept of a stream of slices and levels, as events."""

    def __init__(self, items: Iterable[Slice | Level], names: Mapping[str, str], limit: int) -> None:
        self._names = names
        shown = self._shown(items)
        kept, left_out = _earliest(shown, limit)
        self.other = {"left_out": str(left_out)} if left_out else {}
        self._levels = [item for item in kept if isinstance(item, Level)]
        self._rows = list(_rows(_drawn([item for item in kept if isinstance(item, Slice)])))
        found = {row[0] for row in self._rows} | {level.process for level in self._levels}
        self._processes = {name: number for number, name in enumerate(sorted(found), start=1)}

    def events(self) -> Iterator[dict[str, Any]]:
        """Names first, then slices and arrows row by row, then counters."""
        yield from _metadata(self._processes, self._rows)
        for row in self._rows:
            yield from _row_events(self._processes, row)
        for level in self._levels:
            place = {"pid": self._processes[level.process], "ts": _ticks(level.start) / MICROSECONDS}
            yield {"ph": "C", "name": level.name, **place, "args": {level.unit: level.value}}

    def _shown(self, items: Iterable[Slice | Level]) -> Iterator[Slice | Level]:
        """Under the names to show, without those for whom another stands."""
        stands: dict[str, str] = {}
        for process, name in self._names.items():
            stands.setdefault(name, process)
        for item in items:
            name = self._names.get(item.process, item.process)
            if stands.get(name, item.process) != item.process:
                continue
            if not self._names:
                yield item
            elif isinstance(item, Slice):
                yield replace(item, process=name, to=self._names.get(item.to, item.to))
            else:
                yield replace(item, process=name)


def _earliest(items: Iterable[Slice | Level], limit: int) -> tuple[list[Slice | Level], int]:
    """The earliest items (of those that start together the longer first) that fit, and how many do not."""
    count = 0

    def keyed() -> Iterator[tuple[float, float, int, Slice | Level]]:
        nonlocal count
        for item in items:
            count += 1
            yield item.start, -item.duration, count, item

    # The number of an item decides before the item would be compared.
    kept: list[Slice | Level] = []
    room = limit
    for *_, item in heapq.nsmallest(limit, keyed()):
        room -= item.events
        if room < 0:
            break
        kept.append(item)
    return kept, count - len(kept)


def _drawn(slices: Sequence[Slice]) -> list[_Drawn]:
    """With the other ends of what was sent, in order of start."""
    found: list[_Drawn] = []
    arrows = 0
    for one in slices:
        if one.to:
            arrows += 1
            other = replace(one, process=one.to, thread=f"from {one.process}", to="")
            found += [_Drawn(one, arrows), _Drawn(other, arrows, arrives=True)]
        else:
            found.append(_Drawn(one))
    return found


def _rows(drawn: Iterable[_Drawn]) -> Iterator[Row]:
    """Slices (in order of start, longer first) on as few rows of their thread as nesting allows."""
    threads: dict[tuple[str, str], list[tuple[list[int], list[_Drawn]]]] = {}
    for one in drawn:
        rows = threads.setdefault((one.slice.process, one.slice.thread), [])
        start, end = _ticks(one.slice.start), _ticks(one.slice.start + one.slice.duration)
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


def _row_events(processes: Mapping[str, int], row: Row) -> Iterator[dict[str, Any]]:
    process, thread, number, drawn = row
    place = {"pid": processes[process], "tid": number}
    for one in drawn:
        start, end = _ticks(one.slice.start), _ticks(one.slice.start + one.slice.duration)
        yield {
            "ph": "X",
            "name": one.slice.name,
            "cat": thread,
            **place,
            "ts": start / MICROSECONDS,
            "dur": (end - start) / MICROSECONDS,
            "args": dict(one.slice.args),
        }
        if one.arrow:
            arrow = {"name": "transfer", "cat": "transfer", "id": one.arrow, **place}
            # `bp: e` binds the head to the slice it lies in, and not to the one that follows.
            ends = (
                {"ph": "f", "bp": "e", "ts": end / MICROSECONDS}
                if one.arrives
                else {"ph": "s", "ts": start / MICROSECONDS}
            )
            yield arrow | ends


@contextmanager
def _opened(path: Path) -> Iterator[IO[str]]:
    """A file for text, compressed by its name."""
    with path.open("wb") as raw:
        if path.suffix != ".gz":
            with io.TextIOWrapper(raw, "utf-8", newline="") as text:
                yield text
            return
        # gzip stamps its header with the file's name and the clock unless told otherwise.
        with (
            gzip.GzipFile("", "wb", 6, raw, 0) as packed,
            io.TextIOWrapper(packed, "utf-8", newline="") as text,
        ):
            yield text
