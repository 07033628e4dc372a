"""The adapter's translation and protection table: which keys open which memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from engines.rdma.device import Access, Region, Status

if TYPE_CHECKING:
    import random

KEY_BITS = 32


@dataclass
class Entry:
    """A region as the adapter knows it."""

    region: Region
    live: bool = True

    def bytes(self, address: int, nbytes: int) -> memoryview:
        """A stretch of it by address; the caller has checked that it lies inside."""
        start = address - self.region.offset
        return self.region.view[start : start + nbytes]


class ProtectionTable:
    """Regions by key. Keys are drawn, so that a forged one is refused, and never used twice."""

    def __init__(self, chance: random.Random) -> None:
        self.epoch = 1
        self.registrations = 0
        self.registered_bytes = 0
        self._chance = chance
        self._remote: dict[int, Entry] = {}
        self._local: dict[int, Entry] = {}
        self._used: set[int] = set()
        self._number = 0
        self.nothing = Entry(Region(0, 0, 0, 0, 0, Access(0), 0, memoryview(b"")), live=False)
        """What a request for no bytes reaches, whatever its key."""

    def add(self, view: memoryview, address: int, access: Access) -> Region:
        """Enter a region."""
        lkey, rkey = self._key(), self._key()
        region = Region(self._number, address, view.nbytes, lkey, rkey, access, self.epoch, view)
        self._number += 1
        self._local[lkey] = self._remote[rkey] = Entry(region)
        self.registrations += 1
        self.registered_bytes += view.nbytes
        return region

    def _key(self) -> int:
        while True:
            key = self._chance.getrandbits(KEY_BITS)
            if key not in self._used:
                self._used.add(key)
                return key

    def clear(self) -> None:
        """Take every region out; their keys open nothing from now on."""
        for entry in self._remote.values():
            entry.live = False
        self._remote.clear()
        self._local.clear()
        self._number = 0
        self.registered_bytes = 0
        self.epoch += 1

    def local(self, region: Region, offset: int, nbytes: int, need: Access) -> Entry | None:
        """This side of a request; None if it lies outside of what the key and its rights cover."""
        entry = self._local.get(region.lkey)
        if entry is None or entry.region is not region:
            return None
        inside = min(offset, nbytes) >= 0 and offset + nbytes <= region.nbytes
        return entry if inside and need in region.access else None

    def remote(self, rkey: int, address: int, nbytes: int, need: Access) -> tuple[Status, Entry | None]:
        """What a peer's request reaches, or why it does not.

        Packets carry a key and no epoch, so a key from before a reset is like any other that was never given out.
        """
        entry = self._remote.get(rkey)
        if entry is None:
            return Status.REMOTE_ACCESS, None
        region = entry.region
        inside = region.offset <= address and address + nbytes <= region.offset + region.nbytes
        return (Status.SUCCESS, entry) if inside and need in region.access else (Status.REMOTE_ACCESS, None)
