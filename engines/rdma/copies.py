"""Payload copies, counted at the lines that make them; never inferred from time."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class CopyLedger:
    """Counts payload bytes where user-space code copies them."""

    nbytes: int = 0
    sites: dict[str, int] = field(default_factory=dict)

    def count(self, site: str, nbytes: int) -> None:
        """Record one copy of `nbytes`; call it at the line that makes the copy."""
        self.nbytes += nbytes
        self.sites[site] = self.sites.get(site, 0) + nbytes

    def clear(self) -> None:
        """Start counting again."""
        self.nbytes = 0
        self.sites.clear()
