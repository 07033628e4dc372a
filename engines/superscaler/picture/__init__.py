"""What a person sees of a plan: in space and time, by who holds what, and why it was chosen.

All of it is drawn from a program and its emulated result, and equal inputs give equal bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engines.superscaler.picture.chart import svg
from engines.superscaler.picture.reasons import Candidate, why, why_found
from engines.superscaler.picture.spans import Span, slices, spans
from engines.superscaler.picture.table import Row, rows, text
from engines.superscaler.picture.terminal import sketch

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from emulation.evaluate import Result
    from emulation.profile import Profile
    from engines.superscaler.emulate import Lowered
    from engines.superscaler.memory import DeviceMemory
    from engines.superscaler.program import Program

__all__ = ["Candidate", "Row", "Span", "rows", "sketch", "slices", "spans", "svg", "text", "why", "why_found", "write"]


def write(
    folder: Path,
    program: Program,
    lowered: Lowered,
    result: Result,
    memory: Sequence[DeviceMemory],
    profile: Profile,
) -> list[Path]:
    """Write `plan.svg`, `plan.trace.json` (for Perfetto), `plan.json` and `plan.txt` (who holds what) into a folder."""
    import json

    from emulation.io import chrome_trace

    drawn = spans(lowered, result)
    table = rows(program, memory)
    files = {name: folder / name for name in ("plan.svg", "plan.trace.json", "plan.json", "plan.txt")}
    files["plan.svg"].write_text(svg(program, drawn, memory, profile), encoding="utf-8")
    chrome_trace.write(files["plan.trace.json"], slices(lowered, result), names=result.names())
    listed = [row.to_json() for row in table]
    files["plan.json"].write_text(json.dumps({"plan": program.plan.name, "stages": listed}, indent=1) + "\n", "utf-8")
    files["plan.txt"].write_text(f"{text(table)}\n\n{sketch(program, drawn)}\n", encoding="utf-8")
    return list(files.values())
