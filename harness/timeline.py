"""The timeline of a measured trial, in the format Perfetto and chrome://tracing open."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


def write(path: Path, spans: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Write the spans of each process name as Chrome trace events; the earliest begins at 0."""
    import json

    origin = min(s["start"] for of_rank in spans.values() for s in of_rank)
    events: list[dict[str, Any]] = []
    for number, (process, of_rank) in enumerate(spans.items()):
        events.append({"ph": "M", "pid": number, "name": "process_name", "args": {"name": process}})
        streams = list(dict.fromkeys(s["stream"] for s in of_rank))
        for thread, stream in enumerate(streams):
            events.append({"ph": "M", "pid": number, "tid": thread, "name": "thread_name", "args": {"name": stream}})
        events += [
            {
                "ph": "X",
                "pid": number,
                "tid": streams.index(s["stream"]),
                "name": s["name"],
                "ts": (s["start"] - origin) * 1e6,
                "dur": s["seconds"] * 1e6,
                "args": s["args"],
            }
            for s in of_rank
        ]
    path.write_text(json.dumps({"displayTimeUnit": "ms", "traceEvents": events}), "utf-8")
