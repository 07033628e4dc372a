"""One end of a connection between processes of a host.

A request is carried out when it is posted, by the processor that posts it. It waits only where the peer's mailbox is
full; then it and all that follow are held back, in order, and are carried out as `poll` finds room.

Memory order: a write stores its last word after all others, a mailbox its count after the bytes it counts. x86 makes
stores visible in program order, and the C library ends the streaming stores of a large copy with a fence; other
processors would need a release barrier before those stores (`stlr`, `lwsync`), and the reader an acquire load.
"""

from __future__ import annotations

import struct
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from engines.rdma.device import (
    WORD,
    Access,
    ChannelState,
    Completion,
    HarnessError,
    Operation,
    Status,
    Ticket,
    check_immediate,
)
from engines.rdma.providers.shm import barrier
from engines.rdma.providers.shm.mailbox import BUSY, ERROR, READY, STATE, Mailbox, extent
from engines.rdma.providers.shm.peer import Address, Peer
from engines.rdma.providers.shm.segment import Segment
from engines.rdma.providers.shm.table import OPEN

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from engines.rdma.device import ChannelOptions, Descriptor, Region
    from engines.rdma.providers.shm.device import SharedMemoryDevice

RNR_SECONDS = 0.01
"""Pause that one receiver-not-ready retry stands for; on Soft-RoCE two retries took 20 ms (measured)."""
QUIESCE_SECONDS = 10.0
"""A write of many gigabytes is over by then; a process that was stopped in the middle of one is not."""
FOREVER = 7
"""`ChannelOptions.rnr_retries` that never gives up."""
_READ, _WRITE = int(Access.REMOTE_READ), int(Access.REMOTE_WRITE)
_LOCAL_WRITE = int(Access.LOCAL_WRITE)
_SUCCESS = Status.SUCCESS
_word = struct.Struct("<Q").unpack_from


class _Held(NamedTuple):
    """A request that waits for room in the peer's mailbox."""

    ticket: Ticket
    operation: Operation
    nbytes: int
    signaled: bool
    carry_out: Callable[[], Status | None]


class SharedMemoryChannel:
    """A `Channel` whose peer is a process of this host."""

    def __init__(self, device: SharedMemoryDevice, options: ChannelOptions) -> None:
        self._device = device
        self._home = device.home
        self._options = options
        self._peer: Peer | None = None
        self._completions: deque[Completion] = deque()
        self._held: deque[_Held] = deque()
        self._deadline = 0.0
        """When the first held request will have been retried often enough."""
        self._next: Ticket = 0
        self._closed = False
        self._open_mailbox()

    def _open_mailbox(self) -> None:
        depth, message_bytes = self._options.depth, self._options.message_bytes
        self._segment = Segment.create("rdma-mailbox", extent(depth, message_bytes))
        self._mailbox = Mailbox.lay_out(self._segment.bytes, depth, message_bytes)

    @property
    def state(self) -> ChannelState:
        """As this end last set it, or the peer, whose forbidden request is an error of both ends."""
        return ChannelState.CLOSED if self._closed else self._mailbox.state

    def address(self) -> str:
        """Process, files and inodes (JSON)."""
        self._home.check()
        return Address.of(self._device.uid, self._device.segment.place, self._segment.place).to_json()

    def connect(self, address: str) -> None:
        """Map the peer's memory and mailbox."""
        self._home.check()
        if self.state is not ChannelState.UNCONNECTED or self._peer is not None:
            raise ValueError(f"a channel is connected once; this one is {self.state}: reset it first")
        self._peer = Peer(Address.from_json(address))
        if self._mailbox.state is ChannelState.UNCONNECTED:
            self._mailbox.state = ChannelState.READY

    def write(
        self,
        source: Region,
        target: Descriptor,
        *,
        offset: int,
        at: int,
        nbytes: int,
        imm: int | None = None,
        signaled: bool = True,
    ) -> Ticket:
        """Copy into the peer's memory; the last whole word goes last, alone, and then the immediate."""
        if imm is not None:
            check_immediate(imm)
        # No completion vouches for an unsignaled write, so the kernel is not asked whether anybody will see it.
        if self._held:
            status = None
        else:
            status = self._access(_WRITE, source, target, offset, at, nbytes, imm, signaled)
            if status is _SUCCESS and not signaled:
                # The usual case, without another call.
                ticket = self._next
                self._next = ticket + 1
                return ticket
        return self._post(
            status, Operation.WRITE, nbytes, signaled,
            lambda: self._access(_WRITE, source, target, offset, at, nbytes, imm, signaled),
        )  # fmt: skip

    def read(self, target: Region, source: Descriptor, *, offset: int, at: int, nbytes: int) -> Ticket:
        """Copy out of the peer's memory."""
        status = None if self._held else self._access(_READ, target, source, offset, at, nbytes, None, True)
        return self._post(
            status, Operation.READ, nbytes, True,
            lambda: self._access(_READ, target, source, offset, at, nbytes, None, True),
        )  # fmt: skip

    def send(self, message: bytes) -> Ticket:
        """Append to the peer's mailbox."""
        status = None if self._held else self._send(message)
        return self._post(status, Operation.SEND, len(message), True, lambda: self._send(message))

    def _post(
        self,
        status: Status | None,
        operation: Operation,
        nbytes: int,
        signaled: bool,
        carry_out: Callable[[], Status | None],
    ) -> Ticket:
        """Give a request its ticket, and note how it ended, or that it is held back (None)."""
        request = _Held(self._next, operation, nbytes, signaled, carry_out)
        self._next += 1
        if status is not None:
            self._end(request, status)
            return request.ticket
        if not self._held:
            self._deadline = self._retries_end()
        self._held.append(request)
        self._advance()
        return request.ticket

    def _retries_end(self) -> float:
        return self._device.clock() + self._options.rnr_retries * RNR_SECONDS

    def _advance(self) -> None:
        """Carry out held requests until the peer's mailbox is full again."""
        while self._held:
            status = self._held[0].carry_out()
            if status is None:
                if self._options.rnr_retries == FOREVER or self._device.clock() < self._deadline:
                    return
                status = Status.RECEIVER_NOT_READY
            self._end(self._held.popleft(), status)
            self._deadline = self._retries_end()

    def _end(self, request: _Held, status: Status) -> None:
        if status is not _SUCCESS:
            if not self._closed and self._mailbox.state is not ChannelState.UNCONNECTED:
                self._mailbox.state = ChannelState.ERROR
        elif not request.signaled:
            return
        self._completions.append(Completion(request.ticket, request.operation, status, request.nbytes))

    def _access(
        self,
        need: int,
        local: Region,
        remote: Descriptor,
        offset: int,
        at: int,
        nbytes: int,
        imm: int | None,
        ask: bool,
    ) -> Status | None:
        """Carry out a write or a read (`need`) if nothing forbids it; None if the peer has no room for `imm` now.

        This is on the path of every request, so that what would read better as five calls is one.
        """
        if not self._home.here:
            self._home.check()
        peer = self._peer
        if peer is None or self._mailbox.words[STATE] != READY:
            return Status.FLUSHED
        table, words = peer.table, peer.mailbox.words
        # Said before anything is looked up: what is found then stays so until the access is over (`quiesce`).
        words[BUSY] = 1
        try:
            if not table.words[OPEN] or words[STATE] > READY or (ask and not peer.runs()):
                return Status.RETRY_EXCEEDED
            device = self._device
            outside = offset < 0 or nbytes < 0 or offset + nbytes > local.nbytes
            if outside or device.regions.get(local.number) is not local:
                return Status.LOCAL_PROTECTION
            if need == _READ and not local.access & _LOCAL_WRITE:
                return Status.LOCAL_PROTECTION
            status = table.check(remote, at, nbytes, need) if remote.device == peer.uid else Status.REMOTE_ACCESS
            if status is not _SUCCESS:
                # As with queue pairs, a forbidden access is an error of both ends.
                words[STATE] = ERROR
                return status
            if imm is not None and not peer.mailbox.room_for_immediate():
                return None
            start, count = remote.address + at, device.count
            if need == _READ:
                local.view[offset : offset + nbytes] = peer.bytes[start : start + nbytes]
                count.reads += 1
                count.read_bytes += nbytes
                return _SUCCESS
            _place(peer, local.view, offset, start, nbytes)
            if imm is not None:
                peer.mailbox.put_immediate(imm)
            count.writes += 1
            count.written_bytes += nbytes
            return _SUCCESS
        finally:
            words[BUSY] = 0

    def _send(self, message: bytes) -> Status | None:
        self._home.check()
        peer = self._peer
        if peer is None or self._mailbox.words[STATE] != READY:
            return Status.FLUSHED
        if not peer.table.words[OPEN] or peer.mailbox.words[STATE] > READY or not peer.runs():
            return Status.RETRY_EXCEEDED
        if len(message) > peer.mailbox.message_bytes:
            peer.mailbox.words[STATE] = ERROR
            return Status.REMOTE_INVALID
        if not peer.mailbox.room():
            return None
        peer.mailbox.put(message)
        self._device.count.sends += 1
        return _SUCCESS

    def receive(self) -> bytes | None:
        """The next message of the peer."""
        self._home.check()
        message = None if self._closed else self._mailbox.take()
        if message is not None:
            self._device.count.receives += 1
        return message

    def arrived(self) -> int | None:
        """The next immediate of the peer."""
        self._home.check()
        imm = None if self._closed else self._mailbox.take_immediate()
        if imm is not None:
            self._device.count.receives += 1
        return imm

    def poll(self, most: int = 64) -> Sequence[Completion]:
        """Up to `most` completions, oldest first; what is held back gets on, too."""
        self._home.check()
        if self._held:
            self._advance()
        if not self._completions:
            return ()
        return [self._completions.popleft() for _ in range(min(most, len(self._completions)))]

    def alive(self) -> bool:
        """Whether the peer's process runs, with its device and its end of the channel open."""
        peer = self._peer
        if peer is None or not peer.table.is_open or peer.mailbox.state is ChannelState.CLOSED:
            return False
        return peer.runs()

    def reset(self) -> None:
        """Flush what is held back, and start over with a new mailbox."""
        self._home.check()
        for request in self._held:
            self._completions.append(Completion(request.ticket, request.operation, Status.FLUSHED, request.nbytes))
        self._held.clear()
        self._drop()
        self._open_mailbox()
        self._closed = False

    def quiesce(self) -> None:
        """Wait until the peer is not in the middle of an access; one that begins later will find what changed before.

        Raises:
            HarnessError: the peer lives, and does not come to an end.
        """
        peer, deadline = self._peer, self._device.clock() + QUIESCE_SECONDS
        while not self._closed and self._mailbox.busy and peer is not None and peer.runs():
            if self._device.clock() > deadline:
                raise HarnessError(f"the peer has been in the middle of an access for {QUIESCE_SECONDS:g} s")
            self._device.idle()

    def close(self) -> None:
        """Unmap the peer's memory, and give the mailbox back."""
        if not self._closed:
            self._drop()

    def _drop(self) -> None:
        if not self._closed:
            if self._home.here:
                # A forked child gives back its own mapping and leaves the parent's channel as it is.
                self._mailbox.state = ChannelState.CLOSED
                barrier.everywhere()
                self.quiesce()
            self._closed = True
            self._mailbox.close()
            self._segment.close()
        if self._peer is not None:
            self._peer.close()
            self._peer = None


def _place(peer: Peer, source: memoryview, offset: int, address: int, nbytes: int) -> None:
    """Copy `nbytes` from `offset` in `source` to `address` in the peer's memory."""
    end = offset + nbytes
    if nbytes < WORD or (address + nbytes) % WORD:
        peer.bytes[address : address + nbytes] = source[offset:end]
        return
    if nbytes > WORD:
        peer.bytes[address : address + nbytes - WORD] = source[offset : end - WORD]
    # A block copy may store its end first, so the word that vouches for the rest is stored by itself, after it and
    # with one aligned 64-bit store.
    peer.words[(address + nbytes) // WORD - 1] = _word(source, end - WORD)[0]
