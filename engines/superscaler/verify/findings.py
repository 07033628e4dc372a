"""What is wrong where, in plain words, and the report of a verification."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

Level = Literal[0, 1, 2, 3, 4]
Invariant = Literal["I1", "I2", "I3", "I4", "I5", "I6", "I7", "I8", "I9", "I10", "I11", "schema"]

LEVELS: Mapping[int, str] = {
    0: "schema and bounds",
    1: "every value is whole, once, in its place",
    2: "communication meets, without deadlock",
    3: "equal to one device, in float64",
    4: "equal to one device, on processes",  # found by whoever starts them, and entered in the same report
}
INVARIANTS: Mapping[str, str] = {
    "I1": "every value that is read is whole: nothing is lost, nothing counted twice",
    "I2": "parts cover exactly what is read",
    "I3": "nothing is read before it is made, or after it is dropped",
    "I4": "every part of every operator is computed, where the plan puts it",
    "I5": "instructions lie in one order that all ranks share",
    "I6": "the members of a group call its collectives in one order, alike",
    "I7": "gradients of weights are reduced after the last micro-batch",
    "I8": "the mean over micro-batches is taken once",
    "I9": "random numbers are equal on copies",
    "I10": "bytes are received as predicted",
    "I11": "memory stays within what is predicted, and nothing is left behind",
    "schema": "everything named exists and fits",
}


@dataclass(frozen=True, order=True)
class Finding:
    """Something wrong."""

    level: int
    rank: int
    """-1 if it belongs to no rank."""
    index: int
    """Of the instruction in the rank's list; -1 if it belongs to none, the list's length if to its end."""
    invariant: str
    message: str

    def render(self) -> str:
        """One line."""
        where = f"rank {self.rank}" if self.rank >= 0 else "program"
        if self.index >= 0:
            where += f", instruction {self.index}"
        return f"L{self.level} {self.invariant} {where}: {self.message}"


@dataclass(frozen=True)
class Report:
    """Of a verification, up to some level."""

    asked: int
    findings: tuple[Finding, ...]
    seconds: Mapping[int, float]
    """Of every level that was run."""
    ranks: int
    instructions: int
    notes: tuple[str, ...] = ()
    """What was not checked, and why; what was checked on representatives alone."""

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    @property
    def level(self) -> int:
        """The highest level that was run without interruption; -1 for none."""
        return max(self.seconds, default=-1)

    def caught(self) -> int | None:
        """The lowest level that found something."""
        return min((finding.level for finding in self.findings), default=None)

    def render(self, most: int = 20) -> str:
        """For people: a line per level, then the findings."""
        lines = []
        for level in sorted(self.seconds):
            found = sum(finding.level == level for finding in self.findings)
            verdict = "holds" if not found else f"{found} finding{'s' if found > 1 else ''}"
            lines.append(f"L{level} {LEVELS[level]}: {verdict} ({self.seconds[level]:.3f} s)")
        lines.extend(finding.render() for finding in self.findings[:most])
        if len(self.findings) > most:
            lines.append(f"... and {len(self.findings) - most} more")
        lines.extend(self.notes)
        verdict = f"verified up to L{self.level}" if self.ok else "not verified"
        lines.append(f"{verdict}: {self.ranks} ranks, {self.instructions} instructions")
        return "\n".join(lines)
