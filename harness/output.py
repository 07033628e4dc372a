"""What the command line writes: text for people on a terminal, JSON for programs.

Results go to standard output and everything else to standard error, so that `harness ls --json | jq` works.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence


def say(text: str = "") -> None:
    """One line of result."""
    sys.stdout.write(f"{text}\n")


def complain(text: str) -> None:
    """One line of diagnosis, on standard error."""
    sys.stderr.write(f"{text}\n")


def emit(value: Any) -> None:
    """One JSON document, keys as given, on standard output."""
    plain = (sys.stdout.encoding or "").lower().replace("-", "") != "utf8"
    say(json.dumps(value, indent=2, ensure_ascii=plain, default=str))


def columns(rows: Sequence[tuple[str, ...]], *, indent: str = "  ") -> str:
    """Rows of text under one another, each column as wide as its widest cell."""
    if not rows:
        return ""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = (indent + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
