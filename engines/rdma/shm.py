"""The shared-memory provider: one-sided writes between processes of one host.

A device is one anonymous file (`memfd`) mapped by its owner and by every peer. It has no name, so nothing can be left
behind, however a process dies: the kernel frees it with the last mapping. A peer opens it through the owner's
`/proc/<pid>/fd`, and the inode proves that it is the file meant and not that of a later process with the same id.

The first page is what an adapter keeps in its translation table: who owns the memory, the epoch, and which regions
exist with which key and rights. Every access is checked against it, not against the descriptor that was handed in.
"""

from __future__ import annotations

import json
import mmap
import os
import secrets
import select
import struct
from collections import deque
from typing import Any

from engines.rdma.arena import Arena
from engines.rdma.device import (
    WORD,
    Access,
    Completion,
    Descriptor,
    InvalidDescriptor,
    Operation,
    ProviderUnavailable,
    Region,
    Status,
    Ticket,
)
from engines.rdma.mailbox import Mailbox
from engines.rdma.memory import prepare_pages

MAGIC = b"HRDMASHM"
HEADER = 64 * 1024
"""Bytes before the arena: identity, region table, mailbox."""
IDENTITY = struct.Struct("<8s32sQQ")
"""Magic, owner's uid, epoch, open."""
EPOCH_WORD, OPEN_WORD = 5, 6
"""Where the last two lie, in 64-bit words."""
ENTRY = struct.Struct("<QQQQQQ")
"""Live, address, bytes, rkey, access, epoch."""
TABLE = 128
REGIONS = 256
MAILBOX = TABLE + REGIONS * ENTRY.size
MAILBOX_BYTES = HEADER - MAILBOX


class Segment:
    """The mapping of one device's memory, own or a peer's."""

    def __init__(self, descriptor: int, nbytes: int, *, populate: bool) -> None:
        self.map = mmap.mmap(descriptor, nbytes)
        prepare_pages(self.map, populate=populate)
        self.bytes = memoryview(self.map)
        self.words = self.bytes.cast("Q")

    def identity(self) -> tuple[bytes, bytes, int, int]:
        """(magic, uid, epoch, open)."""
        return IDENTITY.unpack_from(self.bytes)

    def entry(self, number: int) -> tuple[int, ...]:
        """(live, address, bytes, rkey, access, epoch) of a region."""
        return ENTRY.unpack_from(self.bytes, TABLE + number * ENTRY.size)

    def close(self) -> None:
        """Unmap; a view that somebody still holds keeps the mapping until it goes."""
        self.words.release()
        try:
            self.bytes.release()
            self.map.close()
        except BufferError:
            # numpy arrays over the memory are still alive: the mapping goes when the last of them does.
            return


class SharedMemoryDevice:
    """A `Device` whose memory peers on the same host can map."""

    def __init__(self, capacity: int) -> None:
        """Open a device with `capacity` bytes of arena.

        Raises:
            ProviderUnavailable: the kernel has no memfd, or refuses this much memory.
        """
        self.uid = secrets.token_hex(16)
        nbytes = HEADER + -(-capacity // mmap.PAGESIZE) * mmap.PAGESIZE
        try:
            self._file = os.memfd_create("rdma-arena", os.MFD_CLOEXEC)
            os.ftruncate(self._file, nbytes)
            self.segment = Segment(self._file, nbytes, populate=True)
        except (OSError, AttributeError) as error:
            raise ProviderUnavailable(f"shared memory of {nbytes} bytes: {error}") from error
        self.nbytes = nbytes
        self._arena = Arena(HEADER, nbytes)
        self._count = 0
        self._epoch = 1
        IDENTITY.pack_into(self.segment.bytes, 0, MAGIC, self.uid.encode(), self._epoch, 1)
        self.mailbox = Mailbox(self.segment.bytes[MAILBOX:HEADER])
        self._views: list[memoryview] = []

    def allocate(self, nbytes: int, *, access: Access, align: int = 64) -> Region:
        """A zeroed region of the arena."""
        return self._register(self._arena.take(nbytes, align), nbytes, access)

    def register(self, buffer: memoryview, *, access: Access) -> Region:
        """Register a part of this device's own arena; other memory cannot be shared after the fact."""
        import numpy as np

        start = np.frombuffer(self.segment.bytes, np.uint8).ctypes.data
        address = np.frombuffer(buffer, np.uint8).ctypes.data - start
        if not HEADER <= address <= address + buffer.nbytes <= self.nbytes:
            raise ProviderUnavailable("shared memory can only register what lies in the device's own arena")
        return self._register(address, buffer.nbytes, access)

    def _register(self, address: int, nbytes: int, access: Access) -> Region:
        number = self._count
        if number == REGIONS:
            raise ProviderUnavailable(f"a shared-memory device has at most {REGIONS} regions")
        self._count += 1
        rkey, lkey = secrets.randbits(32), secrets.randbits(32)
        row = (1, address, nbytes, rkey, int(access), self._epoch)
        ENTRY.pack_into(self.segment.bytes, TABLE + number * ENTRY.size, *row)
        view = self.segment.bytes[address : address + nbytes]
        self._views.append(view)
        return Region(number, address, nbytes, lkey, rkey, access, self._epoch, view)

    def describe(self, region: Region) -> Descriptor:
        """What a peer must know to reach `region`."""
        return Descriptor(
            self.uid, region.number, region.epoch, region.offset, region.nbytes, region.rkey, int(region.access)
        )

    def owns(self, region: Region) -> bool:
        """Whether `region` is a live region of this device."""
        live, address, nbytes, rkey, _, epoch = self.segment.entry(region.number)
        return bool(live) and (address, nbytes, rkey, epoch) == (
            region.offset, region.nbytes, region.rkey, region.epoch,
        )  # fmt: skip

    def address(self) -> str:
        """Process, descriptor and inode of the segment (JSON)."""
        inode = os.fstat(self._file).st_ino
        return json.dumps(
            {"uid": self.uid, "pid": os.getpid(), "file": self._file, "inode": inode, "nbytes": self.nbytes}
        )

    def connect(self, address: str) -> SharedMemoryChannel:
        """Map a peer's device."""
        return SharedMemoryChannel(self, _parse_address(address))

    def reset(self) -> None:
        """Free everything; a new epoch begins."""
        # One store of one word: a peer may be looking, and `pack_into` clears what it is about to fill.
        self._epoch += 1
        self.segment.words[EPOCH_WORD] = self._epoch
        for number in range(self._count):
            ENTRY.pack_into(self.segment.bytes, TABLE + number * ENTRY.size, 0, 0, 0, 0, 0, 0)
        self._views.clear()
        self._count = 0
        self._arena.reset()

    def close(self) -> None:
        """Tell peers that the device is gone, and unmap it."""
        self.segment.words[OPEN_WORD] = 0
        self._views.clear()
        self.mailbox.close()
        self.segment.close()
        os.close(self._file)


class SharedMemoryChannel:
    """A `Channel` to one peer: its segment, mapped here, and a handle on its process."""

    def __init__(self, device: SharedMemoryDevice, peer: dict[str, Any]) -> None:
        self._device = device
        self._uid = str(peer["uid"])
        self._segment, self._process = _map_peer(peer)
        self._exit = select.poll()
        self._exit.register(self._process, select.POLLIN)
        if self._segment.identity()[:2] != (MAGIC, self._uid.encode()):
            self.close()
            raise InvalidDescriptor("the file at this address is not the device it claims to be")
        self._outbox = Mailbox(self._segment.bytes[MAILBOX:HEADER])
        self._completions: deque[Completion] = deque()
        self._failed = False
        self._next: Ticket = 0

    def write(
        self, source: Region, target: Descriptor, *, offset: int, at: int, nbytes: int, signaled: bool = True
    ) -> Ticket:
        """Copy into the peer's memory; the last whole word goes last, alone."""
        status = self._check(source, target, offset, at, nbytes, Access.REMOTE_WRITE)
        if status is Status.SUCCESS:
            self._place(source.view[offset : offset + nbytes], target.address + at, nbytes)
        return self._complete(Operation.WRITE, status, nbytes, signaled)

    def _place(self, source: memoryview, address: int, nbytes: int) -> None:
        if nbytes < WORD or (address + nbytes) % WORD:
            self._segment.bytes[address : address + nbytes] = source
            return
        body = nbytes - WORD
        if body:
            self._segment.bytes[address : address + body] = source[:body]
        # A block copy may store its end first, so the word that vouches for the rest is stored by itself, after it
        # and with one aligned 64-bit store. x86 keeps the order (and the C library fences its streaming stores);
        # elsewhere a release barrier belongs here.
        self._segment.words[(address + body) // WORD] = int.from_bytes(source[body:], "little")

    def read(self, target: Region, source: Descriptor, *, offset: int, at: int, nbytes: int) -> Ticket:
        """Copy out of the peer's memory."""
        status = self._check(target, source, offset, at, nbytes, Access.REMOTE_READ)
        if status is Status.SUCCESS and not target.access & Access.LOCAL_WRITE:
            status = Status.LOCAL_PROTECTION
        if status is Status.SUCCESS:
            start = source.address + at
            target.view[offset : offset + nbytes] = self._segment.bytes[start : start + nbytes]
        return self._complete(Operation.READ, status, nbytes, True)

    def _check(self, local: Region, remote: Descriptor, offset: int, at: int, nbytes: int, need: Access) -> Status:
        if self._failed:
            return Status.FLUSHED
        if offset < 0 or nbytes < 0 or offset + nbytes > local.nbytes or not self._device.owns(local):
            return Status.LOCAL_PROTECTION
        _, uid, epoch, is_open = self._segment.identity()
        if not is_open or not self.alive():
            return Status.RETRY_EXCEEDED
        if remote.device != self._uid or uid != self._uid.encode() or remote.region >= REGIONS:
            return Status.REMOTE_ACCESS
        if remote.epoch != epoch:
            return Status.STALE_REGION
        live, address, size, rkey, access, registered = self._segment.entry(remote.region)
        known = live and registered == epoch and rkey == remote.rkey and address == remote.address
        inside = at >= 0 and at + nbytes <= size
        return Status.SUCCESS if known and inside and access & need else Status.REMOTE_ACCESS

    def _complete(self, operation: Operation, status: Status, nbytes: int, signaled: bool) -> Ticket:
        ticket = self._next
        self._next += 1
        if status is not Status.SUCCESS:
            self._failed = True
        if signaled or status is not Status.SUCCESS:
            self._completions.append(Completion(ticket, operation, status, nbytes))
        return ticket

    def send(self, message: bytes) -> Ticket:
        """Append to the peer's mailbox."""
        status = Status.SUCCESS if self.alive() else Status.RETRY_EXCEEDED
        if self._failed:
            status = Status.FLUSHED
        if status is Status.SUCCESS:
            self._outbox.put(message)
        return self._complete(Operation.SEND, status, len(message), True)

    def receive(self) -> bytes | None:
        """The next message in this process's own mailbox."""
        return self._device.mailbox.take()

    def poll(self, most: int = 64) -> list[Completion]:
        """Up to `most` completions, oldest first."""
        return [self._completions.popleft() for _ in range(min(most, len(self._completions)))]

    def alive(self) -> bool:
        """Whether the peer's process runs and its device is open."""
        return not self._exit.poll(0) and bool(self._segment.identity()[3])

    def reset(self) -> None:
        """Forget completions and the error."""
        self._completions.clear()
        self._failed = False

    def close(self) -> None:
        """Unmap the peer's memory."""
        if hasattr(self, "_outbox"):
            self._outbox.close()
        self._segment.close()
        os.close(self._process)


def _parse_address(text: str) -> dict[str, Any]:
    try:
        peer = json.loads(text)
    except ValueError as error:
        raise InvalidDescriptor(f"a device address must be JSON: {error}") from None
    wanted: dict[str, type] = {"uid": str, "pid": int, "file": int, "inode": int, "nbytes": int}
    if not isinstance(peer, dict) or set(peer) != set(wanted):
        raise InvalidDescriptor(f"a device address must have exactly the fields {', '.join(wanted)}")
    for name, kind in wanted.items():
        value = peer[name]
        if not isinstance(value, kind) or isinstance(value, bool) or (isinstance(value, int) and value < 0):
            raise InvalidDescriptor(f"{name!r} of a device address is not a valid {kind.__name__}: {value!r}")
    return peer


def _map_peer(peer: dict[str, Any]) -> tuple[Segment, int]:
    """The peer's segment and a file descriptor for its process (readable when it has ended)."""
    try:
        process = os.pidfd_open(peer["pid"])
    except OSError as error:
        raise ProviderUnavailable(f"process {peer['pid']} cannot be reached from here: {error}") from error
    try:
        file = os.open(f"/proc/{peer['pid']}/fd/{peer['file']}", os.O_RDWR | os.O_CLOEXEC)
        try:
            found = os.fstat(file)
            if (found.st_ino, found.st_size) != (peer["inode"], peer["nbytes"]):
                raise InvalidDescriptor("the file at this address is not the one that was published")
            # Of a peer's memory a process touches a part; that part is mapped by the first, untimed step.
            return Segment(file, found.st_size, populate=False), process
        finally:
            os.close(file)
    except OSError as error:
        os.close(process)
        raise ProviderUnavailable(f"the memory of process {peer['pid']} cannot be mapped: {error}") from error
    except InvalidDescriptor:
        os.close(process)
        raise
