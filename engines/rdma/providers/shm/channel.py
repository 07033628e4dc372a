"""One end of a connection between processes of a host.

A request is carried out when it is posted, by the processor that posts it. It waits only where the peer's mailbox is
full; then it and all that follow are held back, in order, and are carried out as `poll` finds room.

Memory order: a write stores its last word after all others, a mailbox its count after the bytes it counts. x86 makes
stores visible in program order, and the C library ends the streaming stores of a large copy with a fence; other
processors would need a release barrier before those stores (`stlr`, `lwsync`), and the reader an acquire load.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from engines.rdma.device import WORD, Access, ChannelState, Completion, Operation, Status, Ticket
from engines.rdma.providers.shm.mailbox import Mailbox, extent
from engines.rdma.providers.shm.peer import Address, Peer
from engines.rdma.providers.shm.segment import Segment

if TYPE_CHECKING:
    from engines.rdma.device import ChannelOptions, Descriptor, Region
    from engines.rdma.providers.shm.device import SharedMemoryDevice

RNR_SECONDS = 0.01
"""Pause that one receiver-not-ready retry stands for; on Soft-RoCE two retries took 20 ms (measured)."""
FOREVER = 7
"""`ChannelOptions.rnr_retries` that never gives up."""
_OPEN = (ChannelState.UNCONNECTED, ChannelState.READY)


class _Request(NamedTuple):
    """A write or a read."""

    ticket: Ticket
    operation: Operation
    local: Region
    remote: Descriptor
    offset: int
    at: int
    nbytes: int
    imm: int | None = None
    signaled: bool = True


class _Message(NamedTuple):
    """A send."""

    ticket: Ticket
    content: bytes
    operation: Operation = Operation.SEND
    signaled: bool = True

    @property
    def nbytes(self) -> int:
        return len(self.content)


class SharedMemoryChannel:
    """A `Channel` whose peer is a process of this host."""

    def __init__(self, device: SharedMemoryDevice, options: ChannelOptions) -> None:
        self._device = device
        self._options = options
        self._peer: Peer | None = None
        self._completions: deque[Completion] = deque()
        self._held: deque[_Request | _Message] = deque()
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
        self._device.home.check()
        return Address.of(self._device.uid, self._device.segment.place, self._segment.place).to_json()

    def connect(self, address: str) -> None:
        """Map the peer's memory and mailbox."""
        self._device.home.check()
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
        if imm is not None and not 0 <= imm < 2**32:
            raise ValueError(f"an immediate is a 32-bit unsigned number, got {imm}")
        return self._post(_Request(self._next, Operation.WRITE, source, target, offset, at, nbytes, imm, signaled))

    def read(self, target: Region, source: Descriptor, *, offset: int, at: int, nbytes: int) -> Ticket:
        """Copy out of the peer's memory."""
        return self._post(_Request(self._next, Operation.READ, target, source, offset, at, nbytes))

    def send(self, message: bytes) -> Ticket:
        """Append to the peer's mailbox."""
        return self._post(_Message(self._next, message))

    def _post(self, request: _Request | _Message) -> Ticket:
        self._device.home.check()
        self._next += 1
        if self._held:
            self._held.append(request)
            self._advance()
        elif not self._carry_out(request):
            self._deadline = self._retries_end()
            self._held.append(request)
            self._advance()
        return request.ticket

    def _retries_end(self) -> float:
        return self._device.clock() + self._options.rnr_retries * RNR_SECONDS

    def _advance(self) -> None:
        """Carry out held requests until the peer's mailbox is full again."""
        while self._held:
            if not self._carry_out(self._held[0]):
                if self._options.rnr_retries == FOREVER or self._device.clock() < self._deadline:
                    return
                self._end(self._held[0], Status.RECEIVER_NOT_READY)
            self._held.popleft()
            self._deadline = self._retries_end()

    def _carry_out(self, request: _Request | _Message) -> bool:
        """Do what was asked; False if the peer has no room for it now."""
        peer = self._peer
        if peer is None or self.state is not ChannelState.READY:
            status: Status | None = Status.FLUSHED
        elif not peer.alive() or peer.mailbox.state not in _OPEN:
            status = Status.RETRY_EXCEEDED
        elif isinstance(request, _Message):
            status = _send(peer, request)
        else:
            status = self._access(peer, request)
        if status is not None:
            self._end(request, status)
        return status is not None

    def _access(self, peer: Peer, request: _Request) -> Status | None:
        _, operation, local, remote, offset, at, nbytes, imm, _ = request
        if offset < 0 or nbytes < 0 or offset + nbytes > local.nbytes or not self._device.owns(local):
            return Status.LOCAL_PROTECTION
        reading = operation is Operation.READ
        if reading and not local.access & Access.LOCAL_WRITE:
            return Status.LOCAL_PROTECTION
        need = Access.REMOTE_READ if reading else Access.REMOTE_WRITE
        status = Status.REMOTE_ACCESS
        if remote.device == peer.uid:
            status = peer.table.check(remote, at, nbytes, need)
        if status is not Status.SUCCESS:
            # As with queue pairs, a forbidden access is an error of both ends.
            peer.mailbox.state = ChannelState.ERROR
            return status
        if imm is not None and not peer.mailbox.room_for_immediate():
            return None
        start = remote.address + at
        count = self._device.count
        if reading:
            local.view[offset : offset + nbytes] = peer.bytes[start : start + nbytes]
            count.reads += 1
            count.read_bytes += nbytes
            return status
        _place(peer, local.view[offset : offset + nbytes], start, nbytes)
        if imm is not None:
            peer.mailbox.put_immediate(imm)
        count.writes += 1
        count.written_bytes += nbytes
        return status

    def _end(self, request: _Request | _Message, status: Status) -> None:
        succeeded = status is Status.SUCCESS
        if not succeeded and not self._closed and self._mailbox.state is not ChannelState.UNCONNECTED:
            self._mailbox.state = ChannelState.ERROR
        if succeeded and request.operation is Operation.SEND:
            self._device.count.sends += 1
        if request.signaled or not succeeded:
            self._completions.append(Completion(request.ticket, request.operation, status, request.nbytes))

    def receive(self) -> bytes | None:
        """The next message of the peer."""
        self._device.home.check()
        message = None if self._closed else self._mailbox.take()
        self._device.count.receives += message is not None
        return message

    def arrived(self) -> int | None:
        """The next immediate of the peer."""
        self._device.home.check()
        imm = None if self._closed else self._mailbox.take_immediate()
        self._device.count.receives += imm is not None
        return imm

    def poll(self, most: int = 64) -> list[Completion]:
        """Up to `most` completions, oldest first."""
        self._device.home.check()
        if self._held:
            self._advance()
        return [self._completions.popleft() for _ in range(min(most, len(self._completions)))]

    def alive(self) -> bool:
        """Whether the peer's process runs, with its device and its end of the channel open."""
        peer = self._peer
        return peer is not None and peer.alive() and peer.mailbox.state is not ChannelState.CLOSED

    def reset(self) -> None:
        """Flush what is held back, and start over with a new mailbox."""
        self._device.home.check()
        for request in self._held:
            self._completions.append(Completion(request.ticket, request.operation, Status.FLUSHED, request.nbytes))
        self._held.clear()
        self._drop()
        self._open_mailbox()
        self._closed = False

    def close(self) -> None:
        """Unmap the peer's memory, and give the mailbox back."""
        if not self._closed:
            self._drop()

    def _drop(self) -> None:
        if not self._closed:
            if self._device.home.here:
                # A forked child gives back its own mapping and leaves the parent's channel as it is.
                self._mailbox.state = ChannelState.CLOSED
            self._closed = True
            self._mailbox.close()
            self._segment.close()
        if self._peer is not None:
            self._peer.close()
            self._peer = None


def _send(peer: Peer, message: _Message) -> Status | None:
    if message.nbytes > peer.mailbox.message_bytes:
        peer.mailbox.state = ChannelState.ERROR
        return Status.REMOTE_INVALID
    if not peer.mailbox.room():
        return None
    peer.mailbox.put(message.content)
    return Status.SUCCESS


def _place(peer: Peer, source: memoryview, address: int, nbytes: int) -> None:
    if nbytes < WORD or (address + nbytes) % WORD:
        peer.bytes[address : address + nbytes] = source
        return
    body = nbytes - WORD
    if body:
        peer.bytes[address : address + body] = source[:body]
    # A block copy may store its end first, so the word that vouches for the rest is stored by itself, after it and
    # with one aligned 64-bit store.
    peer.words[(address + body) // WORD] = int.from_bytes(source[body:], "little")
