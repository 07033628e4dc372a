"""The timeline of a measured trial, written as emulated ones are: for Perfetto and chrome://tracing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from emulation.io import chrome_trace

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


def write(path: Path, spans: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Write the spans of each process name side by side; the earliest begins at 0."""
    origin = min(s["start"] for of_rank in spans.values() for s in of_rank)
    chrome_trace.write(
        path,
        (
            chrome_trace.Slice(process, s["stream"], s["name"], s["start"] - origin, s["seconds"], s["args"])
            for process, of_rank in spans.items()
            for s in of_rank
        ),
    )
