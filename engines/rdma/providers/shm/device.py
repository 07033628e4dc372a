"""A device whose memory the processes of one host map.

The first page of its segment is what an adapter keeps in its translation table: who owns the memory, the epoch, and
which regions exist with which key and rights. A peer checks every access against it, not against the descriptor that
it was handed. What is this process's own side of a request is checked against this process's own list.
"""

from __future__ import annotations

import ctypes
import secrets
import time
from dataclasses import replace
from weakref import WeakSet

from engines.rdma.arena import Arena
from engines.rdma.copies import CopyLedger
from engines.rdma.device import (
    Access,
    ChannelOptions,
    Counters,
    Descriptor,
    ProviderUnavailable,
    Region,
    Traits,
    Unavailable,
    check_buffer,
)
from engines.rdma.fork import Home
from engines.rdma.providers.shm import barrier
from engines.rdma.providers.shm.channel import SharedMemoryChannel
from engines.rdma.providers.shm.segment import Segment
from engines.rdma.providers.shm.table import HEADER, REGIONS, Table

LARGEST_WRITE = 2**62
"""No request is cut: a copy may be as long as the memory."""
SHORTEST = 1e-6
"""Seconds; the kernel's timers add their slack of 50 us."""


class SharedMemoryDevice:
    """A `Device` whose memory peers on the same host can map."""

    def __init__(self, capacity: int) -> None:
        """Open a device with `capacity` bytes of arena.

        Raises:
            ProviderUnavailable: the kernel has no memfd, or refuses this much memory.
        """
        self.uid = secrets.token_hex(16)
        self.ledger = CopyLedger()
        self.home = Home("this shared-memory device")
        self.segment = Segment.create("rdma-arena", HEADER + capacity)
        pages = "2 MiB" if self.segment.large_pages else "small"
        detail = {"memory": "memfd", "pages": pages}
        self.traits = Traits("shm", in_order=True, largest_write=LARGEST_WRITE, detail=detail)
        self.table = Table(self.segment.bytes)
        self.count = Counters()
        """Kept by the channels too; `counters` hands out a copy."""
        self._arena = Arena(HEADER, HEADER + capacity)
        self._touched = HEADER
        """End of the memory that was ever handed out, and may hold something."""
        self._channels: WeakSet[SharedMemoryChannel] = WeakSet()
        self.regions: dict[int, Region] = {}
        """Live ones by number; what else a caller hands in as its own is refused."""
        self._epoch = 1
        self._closed = False
        self.table.open(self.uid, self._epoch)
        barrier.register()

    def allocate(self, nbytes: int, *, access: Access, align: int = 64) -> Region:
        """A zeroed region of the arena."""
        self.home.check()
        self._check_room()
        address = self._arena.take(nbytes, align)
        self._clear(address, address + nbytes)
        return self._register(address, nbytes, access)

    def _clear(self, start: int, end: int) -> None:
        dirty = min(end, self._touched) - start
        if dirty > 0:
            ctypes.memset(_address(self.segment.bytes) + start, 0, dirty)
        self._touched = max(self._touched, end)

    def register(self, buffer: memoryview, *, access: Access) -> Region:
        """Register a part of this device's own arena; other memory cannot be shared after the fact."""
        self.home.check()
        self._check_room()
        check_buffer(buffer)
        offset = _address(buffer) - _address(self.segment.bytes) if buffer.nbytes else HEADER
        if not HEADER <= offset <= offset + buffer.nbytes <= self.segment.nbytes:
            raise ProviderUnavailable(
                Unavailable.MEMORY, "shared memory can only register what lies in the device's own arena"
            )
        return self._register(offset, buffer.nbytes, access)

    def _check_room(self) -> None:
        if len(self.regions) == REGIONS:
            raise ProviderUnavailable(
                Unavailable.MEMORY, f"a shared-memory device has at most {REGIONS} regions at a time"
            )

    def _register(self, offset: int, nbytes: int, access: Access) -> Region:
        rkey, lkey = secrets.randbits(32), secrets.randbits(32)
        view = self.segment.bytes[offset : offset + nbytes]
        region = Region(len(self.regions), offset, nbytes, lkey, rkey, access, self._epoch, view)
        self.regions[region.number] = region
        self.table.enter(self.describe(region))
        self.count.registrations += 1
        self.count.registered_bytes += nbytes
        return region

    def describe(self, region: Region) -> Descriptor:
        """What a peer must know to reach `region`."""
        return Descriptor.of(region, self.uid)

    def channel(self, options: ChannelOptions | None = None) -> SharedMemoryChannel:
        """An unconnected end."""
        self.home.check()
        channel = SharedMemoryChannel(self, options or ChannelOptions())
        self._channels.add(channel)
        return channel

    def idle(self) -> None:
        """Sleep for the shortest time there is, some 60 us: the peer may be waiting for the processor.

        On a busy machine one that yields runs again when everybody else has had a turn, milliseconds later; one that
        slept comes first.
        """
        time.sleep(SHORTEST)

    def clock(self) -> float:
        """Wall time."""
        return time.perf_counter()

    def counters(self) -> Counters:
        """What it has done so far; there is no wire."""
        return replace(self.count)

    def reset(self) -> None:
        """Free everything; a new epoch begins."""
        self.home.check()
        self._epoch += 1
        self.table.reset(self._epoch)
        # Whoever looked before the epoch changed may still write; nobody may when the memory is given out again.
        barrier.everywhere()
        for channel in self._channels:
            channel.quiesce()
        self.regions.clear()
        self._arena.reset()
        self.count.registered_bytes = 0

    def close(self) -> None:
        """Tell peers that the device is gone, and unmap it."""
        if self._closed:
            return
        self._closed = True
        if self.home.here:
            # A forked child gives back its own mapping and leaves the parent's device open.
            self.table.shut()
        self.regions.clear()
        self.table.close()
        self.segment.close()


def _address(buffer: memoryview) -> int:
    """Where a writable buffer of at least one byte lies in this process."""
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))
