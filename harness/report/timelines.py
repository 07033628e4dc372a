"""Timelines read back from the trace a trial left, as tracks to draw.

A trace is Chrome's JSON format (times in microseconds): complete events (`ph: X`) on threads of processes, whose names
come in metadata events (`ph: M`). Perfetto shows the whole file; the report draws its first stretch.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.judging.observations import TargetName, target_of
from harness.report import artifacts

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from harness.records import Artifact, Record
    from harness.report.content import Locate

TRACE_SUFFIX = "trace.json"
MOST_SLICES = 400
MOST_TRACKS = 16
MOST_BYTES = 64 * 2**20
MOST_READ = 3
"""Timelines drawn for each target; the others are linked."""


@dataclass(frozen=True)
class Slice:
    """A stretch of time on a track; seconds."""

    name: str
    start: float
    duration: float


@dataclass(frozen=True)
class Track:
    """One thread of one process."""

    name: str
    slices: tuple[Slice, ...]


@dataclass(frozen=True)
class Timeline:
    """What one trial did when."""

    title: str
    target: TargetName
    path: Path
    """The whole trace, for Perfetto."""
    tracks: tuple[Track, ...]
    slices: int
    """How many slices the trace has in all."""
    problem: str = ""
    """Why it cannot be drawn."""

    @property
    def cut(self) -> bool:
        """Whether only part of it is drawn."""
        return sum(len(track.slices) for track in self.tracks) < self.slices


def collect(records: Sequence[Record], locate: Locate) -> list[Timeline]:
    """Every trace artifact of the records that can be found on disk; the first few of each target are read."""
    found: list[Timeline] = []
    read: Counter[TargetName] = Counter()
    for record, artifact, path in artifacts.found(records, locate, TRACE_SUFFIX):
        target = target_of(record)
        if read[target] < MOST_READ:
            found.append(_timeline(target, _title(record, artifact), path))
        else:
            found.append(Timeline(_title(record, artifact), target, path, (), 0))
        read[target] += 1
    return found


def _title(record: Record, artifact: Artifact) -> str:
    name = artifact.path.rsplit("/", 1)[-1].removesuffix(TRACE_SUFFIX).rstrip(".")
    return " ".join(filter(None, [record.cell, name]))


def _timeline(target: TargetName, title: str, path: Path) -> Timeline:
    if path.stat().st_size > MOST_BYTES:
        return Timeline(title, target, path, (), 0, "the trace is too large to draw here")
    try:
        slices, tracks = _tracks(_events(json.loads(path.read_text(encoding="utf-8"))))
    except (ValueError, TypeError, KeyError, AttributeError):
        return Timeline(title, target, path, (), 0, "the trace is not in Chrome's JSON format")
    return Timeline(title, target, path, tracks, slices)


def _events(document: Any) -> list[dict[str, Any]]:
    return list(document["traceEvents"] if isinstance(document, dict) else document)


def _tracks(events: list[dict[str, Any]]) -> tuple[int, tuple[Track, ...]]:
    """(slices in all, the tracks to draw): the earliest slices of the busiest tracks."""
    named = [e for e in events if e.get("ph") == "M" and "name" in e.get("args", {})]
    processes = {e.get("pid"): e["args"]["name"] for e in named if e["name"] == "process_name"}
    threads = {(e.get("pid"), e.get("tid")): e["args"]["name"] for e in named if e["name"] == "thread_name"}
    found = sorted((e for e in events if e.get("ph") == "X"), key=lambda e: (float(e["ts"]), str(e["name"])))
    by_track: dict[tuple[Any, Any], list[Slice]] = {}
    for event in found[:MOST_SLICES]:
        one = Slice(str(event["name"]), float(event["ts"]) * 1e-6, float(event.get("dur", 0)) * 1e-6)
        by_track.setdefault((event.get("pid"), event.get("tid")), []).append(one)
    busiest = sorted(by_track, key=lambda track: -sum(s.duration for s in by_track[track]))[:MOST_TRACKS]
    tracks = []
    for pid, tid in sorted(busiest, key=str):
        process = processes.get(pid, f"process {pid}")
        thread = threads.get((pid, tid), "")
        tracks.append(Track(" / ".join(filter(None, [str(process), str(thread)])), tuple(by_track[pid, tid])))
    return len(found), tuple(tracks)
