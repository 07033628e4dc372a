"""What a step costs, when nobody says what the cluster is like."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from engines.superscaler.graph import BYTES
from engines.superscaler.redistribution.steps import Crossing, Step, lacked, ring, traffic

Prices = Callable[[Step | Crossing, tuple[int, ...], str], float]
"""(step, shape of the whole tensor, dtype) -> its cost, in whatever unit all of them have. Must be hashable, pure, and
of collectives depend on no more than their kind, groups and the size of what a rank holds."""


MANY = 64
"""Ranks from which on an exchange is priced by what is received: senders are balanced, and finding them takes long."""


@dataclass(frozen=True)
class Bytes:
    """Bytes that the busiest rank sends or receives, plus a little for every hop.

    The formulas are those of the brief's alpha-beta model: all-gather (c-1)e, all-reduce 2(c-1)e/c, reduce-scatter and
    all-to-all (c-1)e/c for c members that hold e each; a slice is free.
    """

    hop: float = 4096.0
    """Of one collective, in bytes; messages piece by piece count twice that, so that collectives win when they are
    equal, as they have the better algorithms."""
    local: float = 64.0
    """Of a step without communication."""

    def __call__(self, step: Step | Crossing, shape: tuple[int, ...], dtype: str) -> float:
        """Cost in bytes."""
        width = BYTES[dtype]
        if step.kind in ("slice", "mask"):
            return self.local
        if isinstance(step, Step) and step.kind != "exchange":
            return ring(step.kind, step.size, math.prod(step.before.local_shape(shape))) * width + self.hop
        if isinstance(step, Step) and step.mesh.size > MANY:
            return lacked(step, shape) * width + 2 * self.hop
        return max(map(max, traffic(step, shape).values())) * width + 2 * self.hop


DEFAULT = Bytes()
