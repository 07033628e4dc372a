"""The processor of a rank: one thread whose work takes virtual time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engines.rdma.copies import CopyLedger

if TYPE_CHECKING:
    from engines.rdma.providers.sim.costs import Costs
    from engines.rdma.providers.sim.fabric import Fabric

SERIALISING = ("serialise", "parse")
"""Copies that stand for packing or unpacking a message, and cost what that costs."""
WITHIN = ("tensor to bytes", "bytes to message", "message to bytes")
"""Copies that are part of it: the rate of serialising is that of a payload into a message, whatever its copies."""


class Processor:
    """Knows until when it is busy.

    A rank's code runs in no virtual time at all, and then its processor is ahead of the others' by the work that was
    charged: what it posts, it posts at that later time. Between two instants it sees nothing new, so that what it
    decides it could have decided then as well.
    """

    def __init__(self, fabric: Fabric, name: str) -> None:
        self._fabric = fabric
        self._name = name
        self._busy = 0

    @property
    def time(self) -> int:
        """Picoseconds on this rank's clock."""
        return max(self._busy, self._fabric.now)

    def work(self, duration: int, what: str) -> int:
        """Be busy for so many picoseconds more; returns when that is over."""
        start = self.time
        self._busy = start + duration
        if duration:
            self._fabric.draw(self._name, "processor", what, start, self._busy)
        return self._busy


@dataclass
class ChargedLedger(CopyLedger):
    """A `CopyLedger` whose copies take the processor's time."""

    processor: Processor = field(kw_only=True)
    costs: Costs = field(kw_only=True)

    def count(self, site: str, nbytes: int) -> None:
        """Record one copy of `nbytes`, and be busy with it."""
        super().count(site, nbytes)
        if site in SERIALISING:
            self.processor.work(self.costs.serialising(nbytes), site)
        elif site not in WITHIN:
            self.processor.work(self.costs.copying(nbytes), site)
