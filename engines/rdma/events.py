"""What a channel reports, sorted by who waits for it.

Several operations share one channel; each must find its own completion, immediate or message, whichever operation
happens to look first.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from engines.rdma.device import Completion, Status
from engines.rdma.placement import PeerLost
from harness.api import HarnessError

if TYPE_CHECKING:
    from engines.rdma.device import Channel, Ticket

GONE = (Status.RETRY_EXCEEDED, Status.RECEIVER_NOT_READY)
"""Statuses that say that the peer did not answer."""


class TransferFailed(HarnessError):
    """A request ended with an error that is not the peer's absence."""

    def __init__(self, what: str, completion: Completion) -> None:
        super().__init__(f"{what}: {completion.operation} of {completion.nbytes} B: {completion.status}")
        self.status = completion.status


class Events:
    """Completions, immediates and messages of one channel."""

    def __init__(self, channel: Channel, what: str) -> None:
        """Listen to `channel`; `what` begins every error message."""
        self._channel, self.what = channel, what
        self._expected: set[Ticket] = set()
        self._finished: set[Ticket] = set()
        self._arrived: dict[int, int] = {}
        self._messages: deque[bytes] = deque()

    def check(self) -> None:
        """Take in completions.

        Raises:
            PeerLost: the peer did not answer a request.
            TransferFailed: a request failed.
        """
        while done := self._channel.poll():
            for completion in done:
                if completion.status is not Status.SUCCESS:
                    self._refuse(completion)
                if completion.ticket in self._expected:
                    self._expected.discard(completion.ticket)
                    self._finished.add(completion.ticket)

    def _refuse(self, completion: Completion) -> None:
        if completion.status in GONE:
            raise PeerLost(f"{self.what}: the other rank ended during a {completion.operation}: {completion.status}")
        raise TransferFailed(self.what, completion)

    def expect(self, ticket: Ticket) -> Ticket:
        """Remember the end of this request when it comes; call it before anybody checks again."""
        self._expected.add(ticket)
        return ticket

    def finished(self, ticket: Ticket) -> bool:
        """Whether an expected request has ended well; true once."""
        if ticket not in self._finished:
            self.check()
        if ticket in self._finished:
            self._finished.discard(ticket)
            return True
        return False

    def outstanding(self) -> int:
        """Expected requests that have not ended, after a look."""
        self.check()
        return len(self._expected)

    def forget(self) -> None:
        """Drop what nobody came for."""
        self._finished.clear()
        self._arrived.clear()
        self._messages.clear()

    def arrival(self, index: int) -> int | None:
        """What the latest immediate for `index` said (see `placement.immediate`), or None before the first."""
        while (imm := self._channel.arrived()) is not None:
            self._arrived[imm & 0xFFFF] = imm >> 16
        return self._arrived.get(index)

    def message(self) -> bytes | None:
        """The next message of the peer, or None."""
        return self._channel.receive()
