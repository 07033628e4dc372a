"""What each kind of node costs on a topology: a fixed time, then bytes that share links."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from emulation.figures import Grade

Family = Literal["host", "compute", "memory", "p2p", "collective"]
FAMILIES: tuple[Family, ...] = ("host", "compute", "memory", "p2p", "collective")
"""Models whose errors have different sizes; a claimed band is kept for each."""


@dataclass(frozen=True)
class Cost:
    """First `fixed` picoseconds in which nothing is shared, then `work` bytes as a fluid over `weights`."""

    family: Family
    grade: Grade
    fixed: int = 0
    work: float = 0.0
    """Bytes of progress (core-seconds of a kernel on shared cores); 0 for none."""
    weights: tuple[tuple[int, float], ...] = field(default=())
    """(link, capacity used per byte of progress); for a kernel on shared cores, per core-second."""
    cap: float = math.inf
    """Bytes of progress per second that it cannot exceed."""
    traffic: tuple[tuple[int, float], ...] = field(default=())
    """(link, bytes that cross it)."""
    method: str = ""
    """How it is carried out, where there was a choice (`ring-ll128`)."""
    steps: tuple[int, int] = (0, 0)
    """Steps of a collective that follow one another: within hosts, and across hosts."""
    processor: float = 0.0
    """Cores that a collective among processes keeps busy meanwhile, all its ranks together."""
    pieces: tuple[Piece, ...] = field(default=())
    """What a fused node consists of, one after another; their times add up to `fixed`."""
    spread: tuple[float, float] | None = None
    """Half-widths of its 80 % band in log space (towards faster, towards slower), from what its model was off by;
    None: what `band` has for the family and grade."""


class Piece(NamedTuple):
    """One part of a fused node."""

    name: str
    kind: str
    duration: int
    """Picoseconds."""
    cost: Cost
    """What it would have cost as a node of its own."""
