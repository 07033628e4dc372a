"""Completion queues: fixed room, and what does not fit is lost."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engines.rdma.device import Status
    from engines.rdma.providers.sim.fabric import Fabric


@dataclass(frozen=True, slots=True)
class Entry:
    """A completion-queue entry (CQE), of a request (`number`) or of a receive (`message` or `imm`)."""

    status: Status
    number: int | None = None
    """Of the work request; None for a receive."""
    message: bytes | None = None
    imm: int | None = None


class CompletionQueue:
    """Entries in the order in which the adapter made them, each visible to software from its own time on.

    With Soft-RoCE an entry too many is lost without a word and the queue pair goes on (measured), so whoever makes a
    queue must give it room for all that can be outstanding; `lost` counts what that would have kept.
    """

    def __init__(self, fabric: Fabric, capacity: int) -> None:
        self._fabric = fabric
        self._entries: deque[tuple[int, Entry]] = deque()
        self.capacity = capacity
        self.lost = 0

    def push(self, entry: Entry, visible: int) -> None:
        """Write an entry that a poller sees at `visible`."""
        if len(self._entries) >= self.capacity:
            self.lost += 1
            self._fabric.note("lost completion", "queue", self.lost)
            return
        if self._entries:
            visible = max(visible, self._entries[-1][0])
        self._entries.append((visible, entry))
        self._fabric.at(visible, self._fabric.stir)

    def take(self) -> Entry | None:
        """The oldest entry that can be seen."""
        if self._entries and self._entries[0][0] <= self._fabric.now:
            return self._entries.popleft()[1]
        return None

    def drain(self) -> list[Entry]:
        """Every entry, seen or not: what is left when a queue pair is torn down."""
        entries = [entry for _, entry in self._entries]
        self._entries.clear()
        return entries
