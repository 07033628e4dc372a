"""One line of `harness doctor`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One thing this machine has or lacks."""

    what: str
    found: str
    fix: str = ""
    """What to do about it; empty where nothing is missing."""
