"""One end of a connection in virtual time: the software above a queue pair.

What a library over verbs does, this does: it holds requests back while the send queue is full, asks for a completion
of every so-manieth request even where its user does not (a slot of the send queue is free again only when a completion
behind it was seen), posts a buffer for every one that was taken, and gives the completion queue room for all of it.
"""

from __future__ import annotations

import json
from collections import deque
from typing import TYPE_CHECKING, Any

from engines.rdma.device import (
    Access,
    ChannelState,
    Completion,
    InvalidDescriptor,
    Operation,
    Status,
    Ticket,
    check_immediate,
)
from engines.rdma.providers.sim.completion_queue import CompletionQueue, Entry
from engines.rdma.providers.sim.packets import Address
from engines.rdma.providers.sim.queue_pair import QueuePair, State
from engines.rdma.providers.sim.requester import Request

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engines.rdma.device import ChannelOptions, Descriptor, Region
    from engines.rdma.providers.sim.device import SimulatedDevice

PROVIDER = "sim"
PSN_BITS = 24
FIELDS: dict[str, type] = {"provider": str, "adapter": str, "pair": int, "mtu": int, "psn": int}
MTUS = (256, 512, 1024, 2048, 4096)
"""Bytes; of the InfiniBand specification."""
MOST_PAIRS = 2**24
STATES = {State.INIT: ChannelState.UNCONNECTED, State.RTS: ChannelState.READY, State.ERROR: ChannelState.ERROR}


class SimulatedChannel:
    """A `Channel` over a simulated queue pair."""

    def __init__(self, device: SimulatedDevice, options: ChannelOptions) -> None:
        self._device = device
        self._options = options
        self._completions: deque[Completion] = deque()
        self._messages: deque[bytes] = deque()
        self._immediates: deque[int] = deque()
        self._next: Ticket = 0
        self._closed = False
        self._open()

    def _open(self) -> None:
        device, depth = self._device, self._options.depth
        self._psn = device.adapter.fabric.random.getrandbits(PSN_BITS)
        self._queue = CompletionQueue(device.adapter.fabric, device.completions or 2 * depth)
        self._pair = QueuePair(device.adapter, device.protection, self._queue, self._options, self._psn)
        self._held: deque[Request] = deque()
        self._posted: deque[Request] = deque()
        """In the send queue, its slots not free again yet."""
        self._tickets: dict[int, tuple[Ticket, Operation, int, bool, bool]] = {}
        """Request number -> ticket, operation, bytes of the whole, last of its ticket, wanted by the user."""
        self._failed: set[Ticket] = set()
        self._number = 0
        self._silent = 0
        """Requests since the last one that asks for a completion."""

    @property
    def state(self) -> ChannelState:
        """Life of the queue pair."""
        return ChannelState.CLOSED if self._closed else STATES[self._pair.state]

    @property
    def lost_completions(self) -> int:
        """Completions for which the queue had no room; none, unless the device was told to make it too small."""
        return self._queue.lost

    def address(self) -> str:
        """Adapter, queue pair, MTU and first packet number (JSON)."""
        self._device.home.check()
        values = (PROVIDER, self._pair.here.adapter, self._pair.here.number, self._device.adapter.mtu, self._psn)
        return json.dumps(dict(zip(FIELDS, values, strict=True)), sort_keys=True)

    def connect(self, address: str) -> None:
        """Join with the peer's end, which must hang on the same fabric."""
        self._device.home.check()
        if self.state is not ChannelState.UNCONNECTED:
            raise ValueError(f"a channel is connected once; this one is {self.state}: reset it first")
        peer = _parse(address)
        self._device.adapter.fabric.reach(peer["adapter"])
        self._pair.connect(Address(peer["adapter"], peer["pair"]), peer["mtu"], peer["psn"])

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
        """Post a write, or several if it is longer than one can be; the last carries the immediate."""
        if imm is not None:
            check_immediate(imm)
        wrong = self._addressed(target, at)
        return self._cut(Operation.WRITE, source, target, offset, at, nbytes, wrong, imm=imm, signaled=signaled)

    def read(self, target: Region, source: Descriptor, *, offset: int, at: int, nbytes: int) -> Ticket:
        """Post a read, or several if it is longer than one can be."""
        wrong = self._addressed(source, at)
        return self._cut(Operation.READ, target, source, offset, at, nbytes, wrong)

    def _addressed(self, remote: Descriptor, at: int) -> Status | None:
        """A descriptor of another machine's memory says nothing about the peer's."""
        return Status.REMOTE_ACCESS if remote.device != self._pair.there.adapter or at < 0 else None

    def _cut(
        self,
        operation: Operation,
        local: Region,
        remote: Descriptor,
        offset: int,
        at: int,
        nbytes: int,
        wrong: Status | None,
        *,
        imm: int | None = None,
        signaled: bool = True,
    ) -> Ticket:
        need = Access.LOCAL_WRITE if operation is Operation.READ else Access(0)
        entry = self._device.protection.local(local, offset, nbytes, need)
        if entry is None:
            wrong, pieces = Status.LOCAL_PROTECTION, [(0, max(nbytes, 0))]
        else:
            pieces = list(_pieces(nbytes, self._device.traits.largest_write))
        requests = [
            Request(
                0, operation, count, signaled, entry, local.offset + offset + start, remote.address + at + start,
                remote.rkey, imm if start + count == nbytes else None, wrong=wrong,
            )
            for start, count in pieces
        ]  # fmt: skip
        return self._post(requests, nbytes, signaled)

    def send(self, message: bytes) -> Ticket:
        """Post a message."""
        return self._post([Request(0, Operation.SEND, len(message), True, message=bytes(message))], len(message), True)

    def _post(self, requests: list[Request], nbytes: int, signaled: bool) -> Ticket:
        self._device.home.check()
        self._device.fabric.acted()
        ticket = self._next
        self._next += 1
        for place, request in enumerate(requests, start=1):
            request.number = self._number
            self._number += 1
            last = place == len(requests)
            self._tickets[request.number] = (ticket, request.operation, nbytes, last, signaled and last)
            request.signaled = self._asks(signaled and last)
            self._held.append(request)
        self._drain()
        return ticket

    def _asks(self, wanted: bool) -> bool:
        """Whether a request asks for a completion: its user wants one, or half the queue went by without."""
        self._silent += 1
        if wanted or self._silent >= max(1, self._options.depth // 2):
            self._silent = 0
            return True
        return False

    def progress(self) -> None:
        """Take what the adapter has completed, and post what was held back."""
        self._drain()

    def _drain(self) -> None:
        self._device.home.check()
        while (entry := self._queue.take()) is not None:
            self._enter(entry)
        if not self._pair.works:
            # Nothing that is held back will be sent; but what was sent before ends before it.
            while self._held and not self._posted:
                self._end(self._held.popleft().number, Status.FLUSHED)
            return
        device = self._device
        while self._held and len(self._posted) < self._options.depth:
            request = self._held.popleft()
            self._posted.append(request)
            when = device.processor.work(device.costs.post_time, f"post {request.operation}")
            device.adapter.fabric.at(when, self._ring, self._pair, request)

    def _ring(self, pair: QueuePair, request: Request) -> None:
        """The doorbell: the adapter learns of a request."""
        if pair.works:
            pair.requester.post(request)
        elif pair is self._pair:
            self._queue.push(Entry(Status.FLUSHED, request.number), self._device.adapter.fabric.now)

    def _enter(self, entry: Entry) -> None:
        if entry.number is not None:
            while self._posted and self._posted[0].number <= entry.number:
                done = self._posted.popleft()
                self._end(done.number, entry.status if done.number == entry.number else Status.SUCCESS)
        elif entry.message is not None:
            self._messages.append(entry.message)
        elif entry.imm is not None:
            self._immediates.append(entry.imm)

    def _end(self, number: int, status: Status) -> None:
        ticket, operation, nbytes, last, wanted = self._tickets.pop(number)
        if status is not Status.SUCCESS:
            if ticket not in self._failed:
                self._completions.append(Completion(ticket, operation, status, nbytes))
            self._failed.add(ticket)
        elif last:
            self._count(operation, nbytes)
            if wanted:
                self._completions.append(Completion(ticket, operation, status, nbytes))

    def _count(self, operation: Operation, nbytes: int) -> None:
        counters = self._device.count
        if operation is Operation.WRITE:
            counters.writes += 1
            counters.written_bytes += nbytes
        elif operation is Operation.READ:
            counters.reads += 1
            counters.read_bytes += nbytes
        else:
            counters.sends += 1

    def receive(self) -> bytes | None:
        """The next message; its buffer is posted again."""
        return self._taken(self._messages)

    def arrived(self) -> int | None:
        """The next immediate; its place is posted again."""
        return self._taken(self._immediates)

    def _taken(self, found: deque[Any]) -> Any:
        self._drain()
        if not found:
            return None
        self._device.fabric.acted()
        self._device.count.receives += 1
        self._pair.post_buffer()
        return found.popleft()

    def poll(self, most: int = 64) -> list[Completion]:
        """Up to `most` completions, oldest first."""
        self._drain()
        if self._completions:
            self._device.fabric.acted()
        return [self._completions.popleft() for _ in range(min(most, len(self._completions)))]

    def alive(self) -> bool:
        """Whether the connection stands; that a peer is gone shows when a request times out."""
        return self.state is ChannelState.READY

    def reset(self) -> None:
        """Flush what is outstanding, and start over with a new queue pair."""
        self._device.home.check()
        self._drop()
        self._closed = False
        self._open()

    def close(self) -> None:
        """Tear the queue pair down; outstanding requests end flushed."""
        if not self._closed:
            self._drop()
            self._closed = True

    def _drop(self) -> None:
        self._pair.tear_down()
        for entry in self._queue.drain():
            self._enter(entry)
        for request in [*self._posted, *self._held]:
            self._end(request.number, Status.FLUSHED)
        self._posted.clear()
        self._held.clear()
        self._messages.clear()
        self._immediates.clear()


def _pieces(nbytes: int, longest: int) -> Iterator[tuple[int, int]]:
    """(start, bytes) of the requests that make up one; of nothing, one of nothing."""
    for start in range(0, max(nbytes, 1), longest):
        yield start, min(longest, nbytes - start)


def _parse(text: str) -> dict[str, Any]:
    try:
        peer = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidDescriptor(f"the address of a channel must be JSON: {error}") from None
    if not isinstance(peer, dict) or set(peer) != set(FIELDS):
        raise InvalidDescriptor(f"the address of a simulated channel must have exactly the fields {', '.join(FIELDS)}")
    for name, kind in FIELDS.items():
        value = peer[name]
        if not isinstance(value, kind) or isinstance(value, bool) or (isinstance(value, int) and value < 0):
            raise InvalidDescriptor(f"{name!r} of a channel's address is not a valid {kind.__name__}: {value!r}")
    possible = peer["mtu"] in MTUS and peer["psn"] < 2**PSN_BITS and 0 < peer["pair"] < MOST_PAIRS
    if peer["provider"] != PROVIDER or not possible:
        raise InvalidDescriptor(f"no simulated channel has this address: {text[:200]}")
    return peer
