"""A reliable-connected queue pair: its states, its two halves, and their turn on the adapter."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from engines.rdma.device import Status
from engines.rdma.providers.sim.packets import Address, Burst, Kind
from engines.rdma.providers.sim.requester import Requester, timeout_of
from engines.rdma.providers.sim.responder import Responder

if TYPE_CHECKING:
    from engines.rdma.device import ChannelOptions
    from engines.rdma.providers.sim.adapter import Adapter
    from engines.rdma.providers.sim.completion_queue import CompletionQueue
    from engines.rdma.providers.sim.memory import ProtectionTable
    from engines.rdma.providers.sim.packets import Reply


class State(StrEnum):
    """Of a queue pair; the names of the InfiniBand specification."""

    INIT = "init"
    """Not connected: whatever comes is ignored."""
    RTS = "ready to send"
    """And to receive; the step between the two has no use here."""
    ERROR = "error"
    RESET = "reset"
    """Torn down."""


class QueuePair:
    """One end of a connection, on an adapter."""

    def __init__(
        self,
        adapter: Adapter,
        protection: ProtectionTable,
        queue: CompletionQueue,
        options: ChannelOptions,
        psn: int,
    ) -> None:
        self.adapter = adapter
        self.protection = protection
        self.queue = queue
        self.options = options
        self.state = State.INIT
        self.scheduled = False
        self.timeout = timeout_of(options)
        self.here = Address(adapter.name, adapter.number(self))
        self.there = Address("", 0)
        self.mtu = adapter.mtu
        self.requester = Requester(self, psn)
        self._responder: Responder | None = None

    def connect(self, there: Address, mtu: int, psn: int) -> None:
        """Join with the peer's; the path takes packets of the smaller MTU."""
        self.there = there
        self.mtu = min(self.mtu, mtu)
        self._responder = Responder(self, psn, self.options.depth, self.options.message_bytes)
        self.adapter.fabric.join(self.here.adapter, there.adapter)
        self.state = State.RTS

    @property
    def works(self) -> bool:
        """Whether anything is sent or taken in."""
        return self.state is State.RTS

    @property
    def burst_bytes(self) -> int:
        """Most payload of a burst: whole packets."""
        return max(1, self.adapter.quantum // self.mtu) * self.mtu

    def schedule(self) -> None:
        """Ask for a turn."""
        if self.works:
            self.adapter.schedule(self)

    def next_burst(self) -> Burst | None:
        """What to send in this turn: answers first."""
        if not self.works or self._responder is None:
            return None
        return self._responder.next_burst() or self.requester.next_burst()

    def sent(self, burst: Burst, departure: int) -> None:
        """A burst will have left at `departure`."""
        if burst.kind is Kind.RESPONSE:
            assert self._responder is not None
            self._responder.sent(departure)
        else:
            self.requester.sent(burst, departure)

    def arrived(self, burst: Burst, processed: int, placed: int) -> None:
        """Take in packets of the peer's; of nobody else's."""
        if not self.works or burst.source != self.there or self._responder is None:
            return
        if burst.kind is Kind.RESPONSE:
            self.requester.responded(burst, placed)
        else:
            self._responder.arrived(burst, processed, placed)

    def replied(self, reply: Reply) -> None:
        """Take an acknowledgement of the peer's."""
        if self.works and reply.source == self.there:
            self.requester.replied(reply)

    def post_buffer(self) -> None:
        """One more message or immediate may come."""
        if self._responder is not None:
            self._responder.post_buffer()

    def fail(self, status: Status) -> None:
        """Go to the error state: the oldest request ends with `status`, the others are flushed."""
        if self.state is State.RTS:
            self.state = State.ERROR
            self.adapter.fabric.note("error", self.adapter.name, self.here.number)
            self.requester.fail(status)
            self.adapter.fabric.stir()

    def tear_down(self) -> None:
        """Flush everything and leave the adapter."""
        self.requester.fail(Status.FLUSHED)
        self.state = State.RESET
        self.adapter.drop(self.here.number)

    def describe(self) -> str:
        """What it waits for; empty for nothing."""
        count = self.requester.outstanding
        return f"queue pair {self.here.number} has {count} outstanding to {self.there.adapter}" if count else ""
