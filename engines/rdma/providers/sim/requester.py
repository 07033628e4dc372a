"""The sending half of a reliable-connected queue pair: what was asked for, sent until it is acknowledged.

Packets are numbered; the responder takes them in order and acknowledges up to a number. When it misses one it says
so, and everything from there on is sent again (go-back-N). When nothing is heard for `4.096 us x 2^timeout`,
everything unacknowledged is sent again, `retries` times; a responder without a posted buffer asks for a pause,
`rnr_retries` times. Any progress starts both counts anew. The InfiniBand specification
numbers modulo 2^24; here numbers just grow.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from emulation.units import picoseconds
from engines.rdma.device import Operation, Status
from engines.rdma.providers.sim.completion_queue import Entry as CompletionEntry
from engines.rdma.providers.sim.packets import Answer, Burst, Kind

if TYPE_CHECKING:
    from engines.rdma.device import ChannelOptions
    from engines.rdma.providers.sim.memory import Entry
    from engines.rdma.providers.sim.packets import Reply
    from engines.rdma.providers.sim.queue_pair import QueuePair

FOREVER = 7
"""`ChannelOptions.rnr_retries` that never gives up."""
TIMEOUT_UNIT = 4.096e-6
"""Seconds; local acknowledgement timeout is this times a power of two (InfiniBand specification, 9.7.6.1.3)."""


def timeout_of(options: ChannelOptions) -> int:
    """Picoseconds without a word before a retry; 0 for ever."""
    return picoseconds(TIMEOUT_UNIT * 2**options.timeout) if options.timeout else 0


@dataclass(slots=True)
class Request:
    """A work-queue entry (WQE)."""

    number: int
    operation: Operation
    nbytes: int
    signaled: bool
    local: Entry | None = None
    """Where the bytes are, or shall go; None for what lies in `message`, or is not allowed."""
    start: int = 0
    """Address of the local side."""
    address: int = 0
    """Address of the remote side."""
    rkey: int = 0
    imm: int | None = None
    message: bytes = b""
    wrong: Status | None = None
    """What is already known to be wrong with it."""
    first: int = 0
    """Its first packet's number."""
    packets: int = 1
    here: set[int] = field(default_factory=set)
    """Of a read: packets of the response that came out of turn."""
    received: int = 0
    """Of a read: packets of the response that came."""
    visible: int = 0
    """Of a read: when software can see what came."""

    @property
    def end(self) -> int:
        """The number after its last packet's."""
        return self.first + self.packets

    @property
    def complete(self) -> bool:
        """Whether a read has all it asked for."""
        return self.operation is not Operation.READ or self.received == self.packets


class Requester:
    """Requests of one queue pair, oldest first."""

    def __init__(self, pair: QueuePair, psn: int) -> None:
        self._pair = pair
        self._requests: deque[Request] = deque()
        self._next = psn
        """Number of the next packet of a new request."""
        self._cursor = psn
        """Number of the next packet to send."""
        self._highest = psn
        """Number after the highest that was ever sent."""
        self._acknowledged = psn
        """Number after the highest that was acknowledged."""
        self._retries = self._pauses = 0
        self._paused_until = 0
        self._deadline = 0
        self._timer_runs = False
        self._reached = psn
        """Number after the highest that the responder said it has, where a read before it is still open."""
        self._visible = 0
        """When software can see all that was read; a completion also stands for what was not signalled before it."""
        self._missing = -1
        """Number that a response gap was already answered for."""

    @property
    def outstanding(self) -> int:
        """Requests not yet completed."""
        return len(self._requests)

    def post(self, request: Request) -> None:
        """Append a request; the adapter has just been told of it."""
        request.first = self._next
        request.packets = max(1, -(-request.nbytes // self._pair.mtu))
        self._next = request.end
        self._requests.append(request)
        self._pair.schedule()

    def next_burst(self) -> Burst | None:
        """What to send now."""
        if self._pair.adapter.fabric.now < self._paused_until:
            return None
        request = self._at_cursor()
        if request is None:
            return None
        if request.wrong is not None:
            # What is before it still completes; nothing behind it is sent.
            if request is self._requests[0]:
                self._pair.fail(request.wrong)
            return None
        if request.operation is Operation.READ:
            return self._read_request(request)
        return self._payload(request)

    def _at_cursor(self) -> Request | None:
        return next((request for request in self._requests if self._cursor < request.end), None)

    def _payload(self, request: Request) -> Burst:
        pair = self._pair
        offset = (self._cursor - request.first) * pair.mtu
        nbytes = min(pair.burst_bytes, request.nbytes - offset)
        last = offset + nbytes == request.nbytes
        if request.local is None:
            data = request.message[offset : offset + nbytes]
        else:
            data = bytes(request.local.bytes(request.start + offset, nbytes)) if request.local.live else bytes(nbytes)
        return Burst(
            Kind.WRITE if request.operation is Operation.WRITE else Kind.SEND,
            pair.here,
            pair.there,
            self._cursor,
            pair.mtu,
            data,
            offset,
            request.nbytes,
            request.address,
            request.rkey,
            last,
            request.imm if last else None,
        )

    def _read_request(self, request: Request) -> Burst:
        """Ask for all that is still missing of it."""
        pair = self._pair
        offset = (self._cursor - request.first) * pair.mtu
        return Burst(
            Kind.READ, pair.here, pair.there, self._cursor, pair.mtu, b"", offset, request.nbytes - offset,
            request.address, request.rkey,
        )  # fmt: skip

    def sent(self, burst: Burst, departure: int) -> None:
        """A burst will have left at `departure`."""
        again = min(burst.psn + burst.psns, self._highest) - burst.psn
        if again > 0:
            self._pair.adapter.wire["retransmissions"] += 1 if burst.kind is Kind.READ else again
        if burst.psn <= self._acknowledged:
            # The timer runs from the oldest packet not acknowledged: what follows it puts nothing off.
            self._watch(departure)
        self._cursor = burst.psn + burst.psns
        self._highest = max(self._highest, self._cursor)

    def _watch(self, start: int) -> None:
        """Expect to hear something within the timeout."""
        pair = self._pair
        if not pair.timeout:
            return
        self._deadline = start + pair.timeout
        if not self._timer_runs:
            self._timer_runs = True
            pair.adapter.fabric.at(self._deadline, self._look)

    def _look(self) -> None:
        self._timer_runs = False
        pair = self._pair
        if not pair.works or self._cursor <= self._acknowledged or not self._requests:
            return
        fabric = pair.adapter.fabric
        if fabric.now < self._deadline:
            self._timer_runs = True
            fabric.at(self._deadline, self._look)
            return
        pair.adapter.wire["timeouts"] += 1
        fabric.note("timeout", pair.adapter.name, pair.here.number, self._acknowledged)
        # Time that passes in vain is something to see, too: whoever waits may have waited long enough.
        fabric.stir()
        self._retries += 1
        if self._retries > pair.options.retries:
            pair.adapter.wire["retry_exceeded_err"] += 1
            pair.fail(Status.RETRY_EXCEEDED)
            return
        pair.adapter.wire["completer_retry_err"] += 1
        self._back_to(self._acknowledged)

    def _back_to(self, psn: int) -> None:
        self._cursor = psn
        self._pair.schedule()

    def replied(self, reply: Reply) -> None:
        """Take an acknowledgement, of whatever kind."""
        pair = self._pair
        if reply.answer is Answer.ACK:
            self._progress(reply.psn + 1)
            self._retire()
            return
        if reply.psn < self._acknowledged:
            return
        self._progress(reply.psn)
        self._retire()
        if not pair.works or not self._requests:
            return
        if reply.answer is Answer.SEQUENCE:
            pair.adapter.wire["rcvd_seq_err"] += 1
            self._back_to(self._acknowledged)
        elif reply.answer is Answer.NOT_READY:
            self._pause(reply)
        else:
            assert reply.status is not None
            pair.fail(reply.status)

    def _pause(self, reply: Reply) -> None:
        pair, fabric = self._pair, self._pair.adapter.fabric
        pair.adapter.wire["rcvd_rnr_err"] += 1
        fabric.stir()
        self._pauses += 1
        if pair.options.rnr_retries != FOREVER and self._pauses > pair.options.rnr_retries:
            pair.adapter.wire["retry_rnr_exceeded_err"] += 1
            pair.fail(Status.RECEIVER_NOT_READY)
            return
        self._cursor = self._acknowledged
        self._paused_until = fabric.now + reply.wait
        fabric.at(self._paused_until, pair.schedule)

    def _progress(self, psn: int) -> None:
        """Everything before `psn` has reached the responder."""
        psn = min(psn, self._highest)
        if psn > self._acknowledged:
            self._acknowledged = psn
            self._retries = self._pauses = 0
            self._cursor = max(self._cursor, psn)
            if self._cursor > psn:
                self._watch(self._pair.adapter.fabric.now)

    def _retire(self) -> None:
        """Complete what is done, in order."""
        pair = self._pair
        while self._requests:
            request = self._requests[0]
            if request.operation is Operation.READ and request.complete:
                self._progress(max(request.end, self._reached))
            if request.end > self._acknowledged:
                break
            if not request.complete:
                self._await_response(request)
                return
            self._requests.popleft()
            self._complete(request, Status.SUCCESS)
        pair.schedule()

    def _await_response(self, request: Request) -> None:
        """A later request was acknowledged, so the response was sent; in order, it would have been here before."""
        if self._pair.adapter.fabric.wire.reorder:
            # It may be on a longer way. What comes of it will retire what is behind it, or the timeout asks again.
            self._reached = max(self._reached, self._acknowledged)
            self._acknowledged = request.first
            self._watch(self._pair.adapter.fabric.now)
            return
        self._acknowledged = request.first + request.received
        if self._missing != self._acknowledged:
            self._missing = self._acknowledged
            self._back_to(self._acknowledged)

    def responded(self, burst: Burst, placed: int) -> None:
        """Take in packets of a response."""
        request = next((r for r in self._requests if r.first <= burst.psn < r.end), None)
        if request is None or request.operation is not Operation.READ:
            return
        in_order = not self._pair.adapter.fabric.wire.reorder
        if in_order:
            # Responses follow in order, so whatever was asked before has been carried out.
            self._progress(request.first)
            self._retire()
            expected = request.first + request.received
            if burst.psn > expected and self._missing != expected:
                self._missing = expected
                self._back_to(expected)
            if burst.psn != expected:
                return
        elif burst.psn in request.here:
            return
        self._take(request, burst, placed)
        if in_order:
            self._progress(request.first + request.received)
        else:
            self._watch(self._pair.adapter.fabric.now)
        self._retire()

    def _take(self, request: Request, burst: Burst, placed: int) -> None:
        adapter = self._pair.adapter
        request.here.add(burst.psn)
        request.received += burst.packets
        visible = placed
        if request.local is not None and burst.data:
            ends = request.complete
            visible = adapter.place(request.local, request.start + burst.offset, burst.data, placed, ends=ends)
        request.visible = max(request.visible, visible)

    def fail(self, status: Status) -> None:
        """End the oldest request with `status`, and flush the others."""
        requests, self._requests = list(self._requests), deque()
        for request in requests:
            self._complete(request, status)
            status = Status.FLUSHED

    def _complete(self, request: Request, status: Status) -> None:
        pair = self._pair
        self._visible = max(self._visible, request.visible)
        if request.signaled or status is not Status.SUCCESS:
            visible = max(pair.adapter.fabric.now + pair.adapter.costs.visible_time, self._visible)
            pair.queue.push(CompletionEntry(status, request.number), visible)
