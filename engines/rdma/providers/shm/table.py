"""The translation table at the start of a device's segment: who owns it, its epoch, its regions.

The owner writes it; peers look an access up before they make it, as an adapter would on the other side.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from engines.rdma.device import Access, Status

if TYPE_CHECKING:
    from engines.rdma.device import Descriptor

HEADER = 64 * 1024
"""Bytes before the arena."""
REGIONS = 1024
"""Regions at a time."""

_IDENTITY = struct.Struct("<8s32sQQ")
_MAGIC = b"HRDMASHM"
_EPOCH, _OPEN = 5, 6
"""Where the last two lie, in 64-bit words."""
_ENTRIES = 128
_ENTRY = struct.Struct("<QQQQQQ")
"""Live, address, bytes, rkey, access, epoch."""


class Table:
    """The table in `memory`, which starts a segment; one's own, or a peer's."""

    def __init__(self, memory: memoryview) -> None:
        self._bytes = memory[:HEADER]
        self._words = self._bytes.cast("Q")
        self._end = memory.nbytes

    def open(self, uid: str, epoch: int) -> None:
        """Make an empty table (32 characters of `uid`)."""
        _IDENTITY.pack_into(self._bytes, 0, _MAGIC, uid.encode(), epoch, 1)

    def belongs_to(self, uid: str) -> bool:
        """Whether this is the table of that device."""
        return _IDENTITY.unpack_from(self._bytes)[:2] == (_MAGIC, uid.encode("ascii", "replace"))

    @property
    def is_open(self) -> bool:
        """Whether its owner has not closed it."""
        return bool(self._words[_OPEN])

    def shut(self) -> None:
        """Say that the device is closed."""
        self._words[_OPEN] = 0

    def enter(self, region: Descriptor) -> None:
        """Add a region."""
        row = (1, region.address, region.nbytes, region.rkey, region.access, region.epoch)
        _ENTRY.pack_into(self._bytes, _ENTRIES + region.region * _ENTRY.size, *row)

    def reset(self, epoch: int) -> None:
        """Forget every region."""
        # One store of one word: a peer may be looking, and `pack_into` clears what it is about to fill.
        self._words[_EPOCH] = epoch
        self._bytes[_ENTRIES : _ENTRIES + REGIONS * _ENTRY.size] = bytes(REGIONS * _ENTRY.size)

    def check(self, region: Descriptor, at: int, nbytes: int, need: Access) -> Status:
        """Whether `nbytes` from `at` in the region may be accessed so."""
        epoch = self._words[_EPOCH]
        if region.region >= REGIONS:
            return Status.REMOTE_ACCESS
        if region.epoch != epoch:
            return Status.STALE_REGION
        live, address, size, rkey, access, registered = _ENTRY.unpack_from(
            self._bytes, _ENTRIES + region.region * _ENTRY.size
        )
        known = live and registered == epoch and rkey == region.rkey and address == region.address
        # Its owner wrote the table, but an entry that leads out of the segment is refused all the same.
        inside = at >= 0 and at + nbytes <= size and address + size <= self._end
        return Status.SUCCESS if known and inside and access & need else Status.REMOTE_ACCESS

    def close(self) -> None:
        """Release the views, so that the memory can be unmapped."""
        self._words.release()
        self._bytes.release()
