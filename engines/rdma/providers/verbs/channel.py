"""One end of a reliable connection: a queue pair, its accounts, and buffers for messages.

States of the queue pair: RESET -> INIT when the channel is made, so that receives are posted before the peer can
send; -> RTR -> RTS on `connect`, with the peer's address; -> ERR by itself on the first failure. A `reset` makes a new
queue pair instead of reusing the old one: its number and first packet are new, so that a late packet of the old
connection finds nobody.
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from typing import TYPE_CHECKING

from engines.rdma.device import (
    Access,
    ChannelState,
    Completion,
    Operation,
    ProviderUnavailable,
    Status,
    Ticket,
    Unavailable,
    check_immediate,
)
from engines.rdma.providers.verbs.adapter import ETHERNET, MemoryAccess, Opcode, Path, Patience
from engines.rdma.providers.verbs.address import PROVIDER, Address
from engines.rdma.providers.verbs.queues import RECEIVE, Piece, ReceiveQueue, Request, SendQueue, cut

if TYPE_CHECKING:
    from engines.rdma.device import ChannelOptions, Descriptor, Region
    from engines.rdma.providers.verbs.adapter import QueuePair, WorkRequest
    from engines.rdma.providers.verbs.device import VerbsDevice

ALL_ACCESS = MemoryAccess.LOCAL_WRITE | MemoryAccess.REMOTE_WRITE | MemoryAccess.REMOTE_READ
"""A queue pair allows what the regions allow."""
LINE = 64
"""Message buffers start on a cache line."""
BATCH = 64
"""Completions taken from the adapter at a time."""
PROBE_SECONDS = 1.0
"""Between two writes of no bytes that ask whether the peer still answers."""


class VerbsChannel:
    """A `Channel` over a reliable-connected queue pair."""

    def __init__(self, device: VerbsDevice, options: ChannelOptions) -> None:
        """Make a queue pair and post its receives.

        Raises:
            ProviderUnavailable: the adapter has no room for another queue pair of this depth.
        """
        limits = device.adapter.limits
        self._device = device
        self._options = options
        # One completion queue serves both directions; Soft-RoCE loses what does not fit, without a word.
        self._depth = max(2, min(options.depth, limits.work_requests, limits.completions // 2))
        self._stride = -(-max(options.message_bytes, 1) // LINE) * LINE
        self._buffers = device.own_memory(2 * self._depth * self._stride)
        self._completions: deque[Completion] = deque()
        self._next: Ticket = 0
        self.state = ChannelState.UNCONNECTED
        self._open()

    def _open(self) -> None:
        self.state = ChannelState.UNCONNECTED
        self._peer: Address | None = None
        self._peer_epoch = 0
        self._lost = False
        self._probe: Request | None = None
        self._probed = 0.0
        self._sequence = secrets.randbits(24)
        try:
            self._pair: QueuePair = self._device.adapter.queue_pair(self._depth, self._depth)
            self._pair.initialize(self._device.port, ALL_ACCESS)
        except OSError as error:
            raise ProviderUnavailable(
                Unavailable.MEMORY, f"{self._device.adapter.name} gives no queue pair of depth {self._depth}: {error}"
            ) from error
        self._sends = SendQueue(self._depth, self._completions, self._post, self._fail)
        self._receives = ReceiveQueue(self._depth, self._post_receive)

    def _post_receive(self, index: int) -> None:
        address = self._buffers.address + index * self._stride
        self._pair.post_receive(RECEIVE | index, address, self._options.message_bytes, self._buffers.lkey)

    def _post(self, entry: WorkRequest, piece: Piece) -> None:
        request = piece.request
        if request.message and request.held is None:
            # Work requests complete in order, so the one that used this buffer before is done.
            start = (self._depth + entry.number % self._depth) * self._stride
            self._buffers.view[start : start + request.nbytes] = request.message
            entry = entry._replace(address=self._buffers.address + start, lkey=self._buffers.lkey)
        self._pair.post(entry)
        if piece.last and not request.internal and request.refused is None:
            self._device.count_request(request.operation, request.nbytes)

    def _fail(self, status: Status) -> None:
        self._lost = self._lost or status is Status.RETRY_EXCEEDED
        if self.state is ChannelState.READY:
            self.state = ChannelState.ERROR
            # Most failures have done this already; a request that was refused here has not.
            self._pair.fail()

    def address(self) -> str:
        """Device, queue pair, first packet and port (JSON)."""
        device = self._device
        device.home.check()
        found = device.adapter.port(device.port)
        return Address(
            PROVIDER, device.uid, device.epoch, self._pair.number, self._sequence, device.gid.hex(), found.lid,
            found.mtu, min(device.adapter.limits.reads, 255), found.link_layer,
        ).to_json()  # fmt: skip

    def connect(self, address: str) -> None:
        """Bring the queue pair to RTS; packets that arrive before the peer has done so too are sent again later."""
        device = self._device
        device.home.check()
        if self.state is not ChannelState.UNCONNECTED:
            raise ValueError(f"a channel is connected once; this one is {self.state}: reset it first")
        peer = Address.from_json(address)
        found = device.adapter.port(device.port)
        if peer.link_layer != found.link_layer:
            raise ProviderUnavailable(Unavailable.PEER, "one port is Ethernet, the other InfiniBand")
        # Zero reads under way would be refused by some adapters, and no adapter that can read offers it.
        reads = max(1, min(device.adapter.limits.reads, peer.reads))
        path = Path(
            peer.queue_pair, peer.sequence, min(found.mtu, peer.mtu), reads, bytes.fromhex(peer.gid), peer.lid,
            device.gid_index, device.port, found.link_layer == ETHERNET or peer.lid == 0,
        )  # fmt: skip
        options = self._options
        patience = Patience(options.timeout, min(options.retries, device.most_retries), options.rnr_retries)
        try:
            self._pair.ready_to_receive(path)
            self._pair.ready_to_send(self._sequence, patience, reads)
        except OSError as error:
            raise ProviderUnavailable(
                Unavailable.PEER, f"{device.adapter.name} cannot reach the peer at {peer.gid}: {error}"
            ) from error
        self._peer, self._peer_epoch = peer, peer.epoch
        self._probed = time.monotonic()
        self.state = ChannelState.READY

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
        """One write, or several where the adapter's largest message is shorter; the immediate goes with the last."""
        if imm is not None:
            check_immediate(imm)
        request = Request(self._next, Operation.WRITE, nbytes, signaled)
        request.refused = self._refuse(source, target, offset, at, nbytes)
        return self._submit_access(request, Opcode.WRITE, source, target, offset, at, imm)

    def read(self, target: Region, source: Descriptor, *, offset: int, at: int, nbytes: int) -> Ticket:
        """One read, or several; the adapters hold back those that are more than both ends can have under way."""
        request = Request(self._next, Operation.READ, nbytes)
        request.refused = self._refuse(target, source, offset, at, nbytes)
        if request.refused is None and not target.access & Access.LOCAL_WRITE:
            request.refused = Status.LOCAL_PROTECTION
        return self._submit_access(request, Opcode.READ, target, source, offset, at, None)

    def _refuse(self, local: Region, remote: Descriptor, offset: int, at: int, nbytes: int) -> Status | None:
        """What is wrong before the adapter is asked; whether the peer allows it only its adapter knows."""
        if offset < 0 or nbytes < 0 or offset + nbytes > local.nbytes or not self._device.owns(local):
            return Status.LOCAL_PROTECTION
        if self._peer is None:
            return None
        if remote.device != self._peer.device or remote.rkey >= 2**32:
            return Status.REMOTE_ACCESS
        if at < 0 or remote.address + at + nbytes > 2**64:
            return Status.REMOTE_ACCESS
        if remote.epoch < self._peer_epoch:
            return Status.STALE_REGION
        self._peer_epoch = remote.epoch
        return None

    def _submit_access(
        self, request: Request, opcode: Opcode, local: Region, remote: Descriptor, offset: int, at: int, imm: int | None
    ) -> Ticket:
        if request.refused is not None:
            return self._submit(request, [Piece(request, opcode)])
        here, there = (local.offset + offset, local.lkey), (remote.address + at, remote.rkey)
        return self._submit(request, list(cut(request, opcode, here, there, self._device.traits.largest_write, imm)))

    def send(self, message: bytes) -> Ticket:
        """Copied into registered memory when its turn comes; one longer than a buffer is registered for itself."""
        request = Request(self._next, Operation.SEND, len(message), message=bytes(message))
        piece = Piece(request, Opcode.SEND, nbytes=len(message))
        if len(message) > self._options.message_bytes and self.state is ChannelState.READY:
            memory = self._device.own_memory(len(message))
            memory.view[:] = message
            request.held = memory
            piece = piece._replace(address=memory.address, lkey=memory.lkey)
        return self._submit(request, [piece])

    def _submit(self, request: Request, pieces: list[Piece]) -> Ticket:
        self._device.home.check()
        self._next += not request.internal
        if self.state in (ChannelState.UNCONNECTED, ChannelState.CLOSED):
            self._completions.append(Completion(request.ticket, request.operation, Status.FLUSHED, request.nbytes))
            return request.ticket
        self._sends.submit(pieces)
        if self._sends.backlog:
            self._progress()
        return request.ticket

    def _progress(self) -> None:
        """Take in what the adapter has completed, and post what waited for room."""
        while found := self._pair.poll(BATCH):
            for entry in found:
                if entry.number & RECEIVE:
                    if not self._receives.finish(entry) and self.state is ChannelState.READY:
                        self.state = ChannelState.ERROR
                else:
                    self._sends.finish(entry.number, entry.status)
            if len(found) < BATCH:
                break
        self._sends.advance()

    def receive(self) -> bytes | None:
        """The next message of the peer, copied out of its buffer."""
        self._device.home.check()
        if self.state is ChannelState.CLOSED:
            return None
        self._progress()
        found = self._receives.message()
        if found is None:
            return None
        index, nbytes = found
        start = index * self._stride
        message = bytes(self._buffers.view[start : start + nbytes])
        self._receives.release(index)
        self._device.count.receives += 1
        return message

    def arrived(self) -> int | None:
        """The next immediate of the peer."""
        self._device.home.check()
        if self.state is ChannelState.CLOSED:
            return None
        self._progress()
        value = self._receives.immediate()
        self._device.count.receives += value is not None
        return value

    def poll(self, most: int = 64) -> list[Completion]:
        """Up to `most` completions, oldest first."""
        self._device.home.check()
        if self.state is not ChannelState.CLOSED:
            self._progress()
        return [self._completions.popleft() for _ in range(min(most, len(self._completions)))]

    def alive(self) -> bool:
        """Whether the peer has answered until now.

        A queue pair hears nothing of a peer that dies while nothing is under way. So a channel on which this is asked
        writes no bytes to the peer about once a second, and finds out by the retries of that.
        """
        if self._peer is None or self.state is ChannelState.CLOSED or not self._device.home.here:
            return False
        self._progress()
        now = time.monotonic()
        free = (self._probe is None or self._probe.ended) and not self._sends.backlog
        if self.state is ChannelState.READY and free and now - self._probed > PROBE_SECONDS:
            self._probed = now
            self._probe = Request(self._next, Operation.WRITE, 0, internal=True)
            self._submit(self._probe, [Piece(self._probe, Opcode.WRITE)])
        return not self._lost

    def reset(self) -> None:
        """Take in what is done, end the rest, and start over with a new queue pair."""
        self._device.home.check()
        if self.state is ChannelState.CLOSED:
            raise ValueError("a closed channel cannot be reset; make a new one")
        self._progress()
        self._drop()
        self._open()

    def _drop(self) -> None:
        self._pair.close()
        self._sends.flush()

    def close(self) -> None:
        """Destroy the queue pair, and give the buffers back."""
        if self.state is ChannelState.CLOSED:
            return
        self.state = ChannelState.CLOSED
        # In a forked child the adapter's objects are the parent's.
        if self._device.home.here:
            self._drop()
            self._buffers.close()
            self._device.forget(self)
