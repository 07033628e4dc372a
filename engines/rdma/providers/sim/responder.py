"""The receiving half of a reliable-connected queue pair: packets in order, protection, buffers, answers.

With adaptive routing in the fabric packets overtake each other. Then the bytes of a write go to memory as they come,
each packet knowing its place, while everything that is promised in order (acknowledgements, immediates, messages, the
next write) waits until nothing before is missing. That is what makes a tail word unsafe there, and an immediate not.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engines.rdma.device import Access, Status
from engines.rdma.providers.sim.completion_queue import Entry as CompletionEntry
from engines.rdma.providers.sim.packets import Answer, Burst, Kind, Reply

if TYPE_CHECKING:
    from engines.rdma.providers.sim.memory import Entry
    from engines.rdma.providers.sim.queue_pair import QueuePair

FARTHEST = 1 << 16
"""Packets kept that came before their turn; more than a detour lasts on any wire."""


@dataclass(slots=True)
class Response:
    """What is still to be sent for a read."""

    psn: int
    entry: Entry
    address: int
    """Of the message's first byte."""
    offset: int
    """Of the next byte to send, in the message."""
    left: int
    """Bytes."""
    total: int


class Responder:
    """What one queue pair does for its peer."""

    def __init__(self, pair: QueuePair, psn: int, buffers: int, message_bytes: int) -> None:
        self._pair = pair
        self._expected = psn
        self._buffers = buffers
        self._message_bytes = message_bytes
        self._said_missing = False
        self._message = bytearray()
        self._early: dict[int, tuple[Burst, int]] = {}
        """Packets ahead of their turn, and when software sees what they brought."""
        self._answers: deque[Response | tuple[Reply, int]] = deque()
        """Responses to send, and acknowledgements that must not overtake them, with when they are ready."""
        self._answered = 0
        """When the last acknowledgement was sent."""
        self._visible = 0
        """When software can see all that came."""
        self._not_before = 0
        """When the next response may read memory."""

    def post_buffer(self) -> None:
        """One more message or immediate may come."""
        self._buffers += 1

    def arrived(self, burst: Burst, processed: int, placed: int) -> None:
        """Take in packets of a request, that the engine and the bus are done with at these times."""
        behind = self._expected - burst.psn
        if behind >= burst.psns:
            self._again(burst, processed)
        elif behind >= 0:
            self._take(burst.part(behind, burst.packets) if behind else burst, processed, placed)
            while self._pair.works and self._expected in self._early:
                early, visible = self._early.pop(self._expected)
                self._take(early, processed, placed, visible)
        elif self._pair.adapter.fabric.wire.reorder:
            self._keep(burst, placed)
        elif not self._said_missing:
            self._said_missing = True
            self._pair.adapter.wire["out_of_seq_request"] += 1
            self._answer(Answer.SEQUENCE, self._expected, processed)

    def _again(self, burst: Burst, processed: int) -> None:
        """A request that was carried out: its acknowledgement, or its response, was lost or late."""
        self._pair.adapter.wire["duplicate_request"] += burst.packets
        if burst.kind is Kind.READ:
            status, entry = self._reach(burst, Access.REMOTE_READ)
            if entry is not None:
                self._respond(burst, entry)
            else:
                self._refuse(status, burst.psn, processed)
        else:
            self._answer(Answer.ACK, self._expected - 1, processed)

    def _keep(self, burst: Burst, placed: int) -> None:
        if burst.psn in self._early or len(self._early) >= FARTHEST:
            return
        visible = 0
        begins = burst.psn - burst.offset // burst.mtu
        if burst.kind is Kind.WRITE and burst.data and begins <= self._expected:
            status, entry = self._reach(burst, Access.REMOTE_WRITE)
            if entry is None:
                # Refused when its turn comes; what is before it must be answered first.
                assert status is not Status.SUCCESS
            else:
                visible = self._place(burst, entry, placed)
        self._early[burst.psn] = (burst, visible)

    def _reach(self, burst: Burst, need: Access) -> tuple[Status, Entry | None]:
        """Look the whole message up, whatever packet of it this is."""
        nbytes = burst.offset + burst.total if burst.kind is Kind.READ else burst.total
        return self._pair.protection.remote(burst.rkey, burst.address, nbytes, need)

    def _place(self, burst: Burst, entry: Entry, placed: int) -> int:
        adapter = self._pair.adapter
        visible = adapter.place(entry, burst.address + burst.offset, burst.data, placed, ends=burst.last)
        self._visible = max(self._visible, visible)
        return visible

    def _take(self, burst: Burst, processed: int, placed: int, visible: int = 0) -> None:
        """Carry out what is next in order; `visible` if its bytes are on their way to memory already."""
        self._said_missing = False
        if burst.kind is Kind.WRITE:
            self._write(burst, processed, placed, visible)
        elif burst.kind is Kind.SEND:
            self._send(burst, processed, placed)
        else:
            self._read(burst, processed)

    def _write(self, burst: Burst, processed: int, placed: int, visible: int) -> None:
        if burst.total and not visible:
            status, entry = self._reach(burst, Access.REMOTE_WRITE)
            if entry is None:
                self._refuse(status, burst.psn, processed)
                return
        if burst.imm is not None and not self._buffers:
            if burst.packets > 1:
                self._write(burst.part(0, burst.packets - 1), processed, placed, visible)
            self._not_ready(processed)
            return
        if burst.data and not visible:
            assert entry is not None
            self._place(burst, entry, placed)
        self._accept(burst, placed)
        if burst.imm is not None:
            self._buffers -= 1
            self._deliver(CompletionEntry(Status.SUCCESS, imm=burst.imm), placed)

    def _send(self, burst: Burst, processed: int, placed: int) -> None:
        if burst.offset == 0:
            if not self._buffers:
                self._not_ready(processed)
                return
            if burst.total > self._message_bytes:
                self._pair.queue.push(CompletionEntry(Status.LOCAL_LENGTH), self._seen(placed))
                self._refuse(Status.REMOTE_INVALID, burst.psn, processed)
                return
            self._buffers -= 1
            self._message = bytearray()
        self._message += burst.data
        self._accept(burst, placed)
        if burst.last:
            self._deliver(CompletionEntry(Status.SUCCESS, message=bytes(self._message)), placed)

    def _read(self, burst: Burst, processed: int) -> None:
        status, entry = self._reach(burst, Access.REMOTE_READ)
        if entry is None and burst.total:
            self._refuse(status, burst.psn, processed)
            return
        self._expected = burst.psn + burst.psns
        self._respond(burst, entry)

    def _seen(self, placed: int) -> int:
        return max(placed + self._pair.adapter.costs.visible_time, self._visible)

    def _deliver(self, entry: CompletionEntry, placed: int) -> None:
        self._pair.queue.push(entry, self._seen(placed))

    def _accept(self, burst: Burst, placed: int) -> None:
        """Acknowledged once the bus has it, so that what a requester knows to be done is there for others to see."""
        self._expected = burst.psn + burst.psns
        if burst.acknowledge:
            self._answer(Answer.ACK, self._expected - 1, placed)

    def _not_ready(self, processed: int) -> None:
        self._pair.adapter.wire["send_rnr_err"] += 1
        self._said_missing = True
        self._early.clear()
        self._answer(Answer.NOT_READY, self._expected, processed)

    def _refuse(self, status: Status, psn: int, processed: int) -> None:
        """A forbidden access is an error of both ends."""
        self._answer(Answer.ERROR, psn, processed, status)
        self._pair.fail(Status.FLUSHED)

    def _answer(self, answer: Answer, psn: int, processed: int, status: Status | None = None) -> None:
        pair = self._pair
        wait = pair.adapter.receiver_wait if answer is Answer.NOT_READY else 0
        reply = Reply(answer, pair.here, pair.there, psn, status, wait)
        if self._answers:
            self._answers.append((reply, processed))
        else:
            self._reply(reply, processed)

    def _reply(self, reply: Reply, when: int) -> None:
        self._answered = max(self._answered, when)
        self._pair.adapter.reply(reply, self._answered)

    # Responses to reads

    def _respond(self, burst: Burst, entry: Entry | None) -> None:
        adapter = self._pair.adapter
        if entry is None:
            # Nothing was asked for, so that no key was looked at.
            entry = self._pair.protection.nothing
        self._answers.append(
            Response(burst.psn, entry, burst.address, burst.offset, burst.total, burst.offset + burst.total)
        )
        # Reads do not pass writes: what has arrived must be in memory before it is read.
        self._not_before = max(adapter.fabric.now, adapter.placed_by)
        adapter.fabric.at(self._not_before, self._pair.schedule)

    def next_burst(self) -> Burst | None:
        """Packets of a response to send now."""
        pair = self._pair
        if not self._answers or pair.adapter.fabric.now < self._not_before:
            return None
        response = self._answers[0]
        assert isinstance(response, Response)
        nbytes = min(response.left, pair.burst_bytes)
        start = response.address + response.offset
        data = bytes(response.entry.bytes(start, nbytes)) if response.entry.live and nbytes else bytes(nbytes)
        burst = Burst(
            Kind.RESPONSE, pair.here, pair.there, response.psn, pair.mtu, data, response.offset, response.total,
            last=nbytes == response.left,
        )  # fmt: skip
        response.psn += burst.packets
        response.offset += nbytes
        response.left -= nbytes
        return burst

    def sent(self, departure: int) -> None:
        """A burst of the response leaves; behind the last one go the acknowledgements that waited for it."""
        response = self._answers[0]
        self._answered = max(self._answered, departure)
        if isinstance(response, Response) and response.left == 0:
            self._answers.popleft()
            while self._answers and not isinstance(self._answers[0], Response):
                reply, ready = self._answers.popleft()
                self._reply(reply, ready)
