"""The space-time chart in letters, for consoles.

::

    device 0  0123······₀₁₂₃···▒
    device 1  ··0₀1₁2₂3₃·······▒
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from emulation.units import render

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engines.superscaler.picture.spans import Span
    from engines.superscaler.plan import Block
    from engines.superscaler.program import Program

IDLE, AFTER = "·", "▒"
DIGITS = {"F": "0123456789", "B": "₀₁₂₃₄₅₆₇₈₉", "W": "⁰¹²³⁴⁵⁶⁷⁸⁹"}


def sketch(program: Program, spans: Sequence[Span], width: int = 96) -> str:
    """A row for every device; each letter is the last digit of the micro-batch that has most of its time.

    Args:
        program: what is done.
        spans: when.
        width: letters of the whole step.
    """
    end = max((span.end for span in spans), default=0.0)
    devices = sorted({span.device for span in spans})
    label = max((len(f"device {device}") for device in devices), default=0)
    lines = [
        _row(f"device {device}".ljust(label), [s for s in spans if s.device == device], end, width)
        for device in devices
    ]
    passes = sorted({span.block.what for span in spans if span.block}, key="FBW".index)
    words = {"F": "forward", "B": "backward", "W": "weights"}
    key = ", ".join([*(f"{DIGITS[what][:3]} {words[what]}" for what in passes), f"{AFTER} update", f"{IDLE} idle"])
    return "\n".join([*lines, f"{program.plan.name or 'plan'}: {render(end, 's')} a step; {key}"])


def _row(label: str, spans: Sequence[Span], end: float, width: int) -> str:
    most: list[tuple[float, str]] = [(0.0, IDLE)] * width
    cell = end / width
    taken: dict[tuple[int, Block | None], float] = {}
    for span in spans:
        if span.kind == "message":
            continue
        for place in range(int(span.start / cell), min(width - 1, int(span.end / cell)) + 1):
            overlap = min(span.end, (place + 1) * cell) - max(span.start, place * cell)
            taken[place, span.block] = taken.get((place, span.block), 0.0) + max(0.0, overlap)
    for (place, block), spent in taken.items():
        # More than half of the time idle is shown as idle.
        if spent > most[place][0] and spent >= cell / 2:
            most[place] = (spent, DIGITS[block.what][block.micro_batch % 10] if block else AFTER)
    return f"{label}  {''.join(letter for _, letter in most)}"
