"""The translation table at the start of a device's segment: who owns it, its epoch, its regions.

The owner writes it; peers look an access up before they make it, as an adapter would on the other side.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from engines.rdma.device import Status

if TYPE_CHECKING:
    from engines.rdma.device import Descriptor

HEADER = 64 * 1024
"""Bytes before the arena."""
REGIONS = 1024
"""Regions at a time."""

_IDENTITY = struct.Struct("<8s32sQQ")
_MAGIC = b"HRDMASHM"
_EPOCH, OPEN = 5, 6
"""Where the last two lie, in 64-bit words."""
_ENTRIES = 128
_ENTRY = struct.Struct("<QQQQQQ")
"""Live, address, bytes, rkey, access, epoch."""


class Table:
    """The table in `memory`, which starts a segment; one's own, or a peer's."""

    def __init__(self, memory: memoryview) -> None:
        self._bytes = memory[:HEADER]
        self.words = self._bytes.cast("Q")
        self._end = memory.nbytes
        self._epoch = 0
        self._known: dict[int, tuple[Descriptor, int, int]] = {}
        """What was looked up in this epoch: (descriptor, bytes, access) by the descriptor's identity."""

    def open(self, uid: str, epoch: int) -> None:
        """Make an empty table (32 characters of `uid`)."""
        _IDENTITY.pack_into(self._bytes, 0, _MAGIC, uid.encode(), epoch, 1)

    def belongs_to(self, uid: str) -> bool:
        """Whether this is the table of that device."""
        return _IDENTITY.unpack_from(self._bytes)[:2] == (_MAGIC, uid.encode("ascii", "replace"))

    @property
    def is_open(self) -> bool:
        """Whether its owner has not closed it."""
        return bool(self.words[OPEN])

    def shut(self) -> None:
        """Say that the device is closed."""
        self.words[OPEN] = 0

    def enter(self, region: Descriptor) -> None:
        """Add a region."""
        row = (1, region.address, region.nbytes, region.rkey, region.access, region.epoch)
        _ENTRY.pack_into(self._bytes, _ENTRIES + region.region * _ENTRY.size, *row)

    def reset(self, epoch: int) -> None:
        """Forget every region."""
        # One store of one word: a peer may be looking, and `pack_into` clears what it is about to fill.
        self.words[_EPOCH] = epoch
        self._bytes[_ENTRIES : _ENTRIES + REGIONS * _ENTRY.size] = bytes(REGIONS * _ENTRY.size)

    def check(self, region: Descriptor, at: int, nbytes: int, need: int) -> Status:
        """Whether `nbytes` from `at` in the region may be accessed so (`need` of `Access`)."""
        if self.words[_EPOCH] != self._epoch:
            self._known.clear()
            self._epoch = self.words[_EPOCH]
        # Within an epoch regions are only added, so that one look-up of a descriptor serves all its requests.
        known = self._known.get(id(region))
        if known is None:
            status = self._look_up(region)
            if status is not Status.SUCCESS:
                return status
            known = self._known[id(region)]
        _, size, access = known
        return Status.SUCCESS if at >= 0 and at + nbytes <= size and access & need else Status.REMOTE_ACCESS

    def _look_up(self, region: Descriptor) -> Status:
        if region.region >= REGIONS:
            return Status.REMOTE_ACCESS
        if region.epoch != self._epoch:
            return Status.STALE_REGION
        live, address, size, rkey, access, registered = _ENTRY.unpack_from(
            self._bytes, _ENTRIES + region.region * _ENTRY.size
        )
        # Its owner wrote the table, but an entry that leads out of the segment is refused all the same.
        known = live and registered == self._epoch and rkey == region.rkey and address == region.address
        if not known or address + size > self._end:
            return Status.REMOTE_ACCESS
        if len(self._known) >= REGIONS:
            self._known.clear()
        self._known[id(region)] = region, size, access
        return Status.SUCCESS

    def close(self) -> None:
        """Release the views, so that the memory can be unmapped."""
        self._known.clear()
        self.words.release()
        self._bytes.release()
