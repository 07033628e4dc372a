"""Static placement: every tensor has its slot in the receiver's memory before the first step.

A slot is the payload, zero padding to eight bytes, then a *sequence word* (paper, section 3.2, with a step number
where the paper has a flag byte: a flag cannot tell a stale step from a fresh one)::

    | payload ............ | 0-7 zero bytes | u64 sequence |
    ^ slot start, aligned                   ^ tail

One write carries all three and places the sequence last; the receiver polls it. Equal to the step it waits for: the
payload is complete. Smaller: not yet. Larger: the sender ran ahead of the protocol, and what lies in the slot is not
this step's tensor.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engines.rdma.device import WORD
from harness.api import HarnessError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

ALIGN = 64
"""Slots start on a cache line, so that no two tails share one with a payload being written."""
SPINS = 64
"""Polls between two `sched_yield`: a poller that owns every processor would starve the writer."""
YIELDS_PER_CHECK = 512
"""Yields between two looks at whether the peer still lives (a system call)."""


class ProtocolError(HarnessError):
    """The peer broke the sequence protocol."""


class PeerLost(HarnessError):
    """The other rank ended, or said nothing for too long."""


@dataclass(frozen=True)
class Slot:
    """Where one tensor lies, relative to its region."""

    offset: int
    nbytes: int
    """Payload only."""

    @property
    def tail(self) -> int:
        """Offset of the sequence word, a multiple of eight."""
        return self.offset + -(-self.nbytes // WORD) * WORD

    @property
    def span(self) -> int:
        """Bytes from the slot's start to its end: payload, padding and sequence."""
        return self.tail + WORD - self.offset


def lay_out(sizes: Iterable[int]) -> tuple[Slot, ...]:
    """Slots for payloads of these sizes, one after another."""
    slots: list[Slot] = []
    offset = 0
    for nbytes in sizes:
        slot = Slot(offset, nbytes)
        slots.append(slot)
        offset = -(-(slot.offset + slot.span) // ALIGN) * ALIGN
    return tuple(slots)


def extent(slots: tuple[Slot, ...]) -> int:
    """Bytes of a region that holds these slots."""
    return slots[-1].offset + slots[-1].span if slots else 0


def wait_for(
    words: memoryview, index: int, expected: int, *, alive: Callable[[], bool], timeout: float, what: str
) -> None:
    """Poll a sequence word until it is `expected`.

    Memory order: x86 makes stores visible in program order and never moves a load before an older load, so a payload
    read after this returns is the one the sequence vouches for. Weaker architectures need a release store by the
    writer (`stlr`, `lwsync`) and an acquire load here; the interpreter's own lock operations between the two accesses
    are full barriers in practice, but nothing in the language promises it.

    Args:
        words: the region as 64-bit words (format `Q`).
        index: which word.
        expected: sequence number of this step.
        alive: says whether the peer still lives.
        timeout: seconds.
        what: for the error message.

    Raises:
        ProtocolError: the word is larger than expected.
        PeerLost: the peer ended, or `timeout` passed.
    """
    deadline = time.monotonic() + timeout
    while True:
        for _ in range(YIELDS_PER_CHECK):
            for _ in range(SPINS):
                found = words[index]
                if found == expected:
                    return
                if found > expected:
                    raise ProtocolError(f"{what}: expected sequence {expected}, found {found}")
            os.sched_yield()
        if not alive() and words[index] != expected:
            raise PeerLost(f"{what}: the other rank ended before step {expected}")
        if time.monotonic() > deadline:
            raise PeerLost(f"{what}: step {expected} did not come within {timeout:g} s")
