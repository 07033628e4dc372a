"""Accounts of a queue pair: what is in the send queue, what waits for room in it, and what has come in.

A send queue takes so many work requests and refuses the next; here posting never fails, because what finds no room
waits in a backlog. A completion costs both adapter and processor something, so only the last work request of a ticket
asks for one, and an unsignalled one asks where otherwise half a queue would have none: without, the queue would fill
up for good. Completions come in the order of posting, so one completion settles all before it; after a failure the
adapter completes everything that is outstanding, whether it was asked to or not.

Nothing here touches an adapter: both queues are handed the calls that do.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from engines.rdma.device import Completion, Operation, Status, Ticket
from engines.rdma.providers.verbs.adapter import RECEIVED_WITH_IMM, Finished, Opcode, WorkRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from engines.rdma.providers.verbs.adapter import Memory

RECEIVE = 1 << 63
"""Set in the number of every receive: a failed completion does not tell the direction otherwise."""

STATUSES = {
    0: Status.SUCCESS,
    1: Status.LOCAL_LENGTH,
    2: Status.LOCAL_OPERATION,
    4: Status.LOCAL_PROTECTION,
    5: Status.FLUSHED,
    8: Status.LOCAL_PROTECTION,
    9: Status.REMOTE_INVALID,
    10: Status.REMOTE_ACCESS,
    11: Status.REMOTE_OPERATION,
    12: Status.RETRY_EXCEEDED,
    13: Status.RECEIVER_NOT_READY,
    15: Status.REMOTE_INVALID,
    16: Status.REMOTE_OPERATION,
    20: Status.RETRY_EXCEEDED,
}
"""`IBV_WC_*` to `Status`; all others are failures of the adapter itself."""


@dataclass(slots=True)
class Request:
    """What was asked for under one ticket."""

    ticket: Ticket
    operation: Operation
    nbytes: int
    signaled: bool = True
    refused: Status | None = None
    """How it ends without the adapter being asked: it was wrong on its face. It still ends in its turn."""
    message: bytes | None = None
    """What a `send` sends, copied into registered memory when there is room in the send queue."""
    held: Memory | None = None
    """A registration made for this request alone."""
    internal: bool = False
    """Posted by the channel itself; nobody waits for its completion."""
    ended: bool = False


class Piece(NamedTuple):
    """One work request to be, of a request; `number` is given when it is posted."""

    request: Request
    opcode: Opcode
    address: int = 0
    nbytes: int = 0
    lkey: int = 0
    remote: int = 0
    rkey: int = 0
    imm: int = 0
    last: bool = True


def cut(request: Request, opcode: Opcode, local: tuple[int, int], remote: tuple[int, int], largest: int,
        imm: int | None = None) -> Iterator[Piece]:  # fmt: skip
    """The pieces of a write or a read, each of at most `largest` bytes; the immediate goes with the last.

    Args:
        request: whose pieces; its `nbytes` are moved.
        opcode: `WRITE` or `READ`.
        local: address and lkey.
        remote: address and rkey.
        largest: bytes of one work request.
        imm: 32 bits for the peer.
    """
    start = 0
    while True:
        nbytes = min(request.nbytes - start, largest)
        last = start + nbytes == request.nbytes
        code = Opcode.WRITE_WITH_IMM if last and imm is not None else opcode
        yield Piece(
            request, code, local[0] + start, nbytes, local[1], remote[0] + start, remote[1], imm or 0, last
        )  # fmt: skip
        start += nbytes
        if last:
            return


class SendQueue:
    """A send queue of fixed depth with a backlog of any length before it."""

    def __init__(
        self,
        depth: int,
        completions: deque[Completion],
        post: Callable[[WorkRequest, Piece], None],
        fail: Callable[[Status], None],
    ) -> None:
        """Start empty.

        Args:
            depth: work requests that the adapter takes at a time, at least 2.
            completions: where ended requests go, oldest first.
            post: hands one to the adapter; raises `OSError` if it is refused.
            fail: puts the queue pair into its error state; called with the first failure.
        """
        self.depth = depth
        self.failed = False
        self._completions = completions
        self._post = post
        self._fail = fail
        self._backlog: deque[Piece] = deque()
        self._posted: deque[tuple[int, Piece]] = deque()
        self._number = 0
        self._unsignaled = 0
        self._refusing = False
        """A refused request is next to end; what follows must not reach the adapter."""

    @property
    def outstanding(self) -> int:
        """Work requests in the adapter's hands."""
        return len(self._posted)

    @property
    def backlog(self) -> int:
        """Work requests that wait for room."""
        return len(self._backlog)

    def submit(self, pieces: Iterator[Piece]) -> None:
        """Append the pieces of one request."""
        self._backlog.extend(pieces)
        self.advance()

    def advance(self) -> None:
        """Post from the backlog while there is room; after a failure, flush it once the adapter has let go."""
        while self._backlog and len(self._posted) < self.depth and not self.failed and not self._refusing:
            self._post_one(self._backlog.popleft())
        if self.failed and not self._posted:
            while self._backlog:
                self._end(self._backlog.popleft().request, Status.FLUSHED)

    def _post_one(self, piece: Piece) -> None:
        number = self._number
        self._number += 1
        asked = piece.last and (piece.request.signaled or piece.request.refused is not None)
        signaled = asked or self._unsignaled + 1 >= self.depth // 2
        self._unsignaled = 0 if signaled else self._unsignaled + 1
        if piece.request.refused is None:
            _, opcode, address, nbytes, lkey, remote, rkey, imm, _ = piece
            entry = WorkRequest(number, opcode, address, nbytes, lkey, remote, rkey, imm, signaled)
        else:
            # A write of no bytes stands in its place: when that completes, all before it have.
            self._refusing = True
            entry = WorkRequest(number, Opcode.WRITE, 0, 0, 0, 0, 0, 0, signaled)
        try:
            self._post(entry, piece)
        except OSError:
            self._give_up(piece.request)
            return
        self._posted.append((number, piece))

    def _give_up(self, culprit: Request) -> None:
        """The adapter would not take a request: nothing that it still says about the others can be placed."""
        self._break(Status.LOCAL_OPERATION)
        self._flush_posted()
        self._end(culprit, Status.LOCAL_OPERATION)

    def finish(self, number: int, status: int) -> None:
        """Take in one completion of the adapter: it settles everything posted before it, too."""
        while self._posted and self._posted[0][0] <= number:
            found, piece = self._posted.popleft()
            if found < number or status == 0:
                if piece.last:
                    self._end(piece.request, piece.request.refused or Status.SUCCESS)
            else:
                self._end(piece.request, STATUSES.get(status, Status.LOCAL_OPERATION))

    def _end(self, request: Request, status: Status) -> None:
        if status is not Status.SUCCESS:
            self._break(status)
        if request.ended:
            return
        request.ended = True
        if request.held is not None:
            request.held.close()
        if request.internal:
            return
        if request.signaled or status is not Status.SUCCESS:
            self._completions.append(Completion(request.ticket, request.operation, status, request.nbytes))

    def _break(self, status: Status) -> None:
        if not self.failed:
            self.failed = True
            self._fail(status)

    def _flush_posted(self) -> None:
        while self._posted:
            _, piece = self._posted.popleft()
            # An unsignalled request may long be done; only one that somebody waits for must end.
            if piece.request.signaled:
                self._end(piece.request, Status.FLUSHED)

    def flush(self) -> None:
        """End everything that is under way or waiting; the queue pair is gone."""
        self.failed = True
        self._flush_posted()
        while self._backlog:
            self._end(self._backlog.popleft().request, Status.FLUSHED)


class ReceiveQueue:
    """Posted receives, and what has come into them; a receive goes back when its content is taken.

    So a peer can have no more than `depth` messages and immediates under way: the next one finds no receive, and its
    adapter retries (`RECEIVER_NOT_READY` after `rnr_retries`).
    """

    def __init__(self, depth: int, post: Callable[[int], None]) -> None:
        """Post all receives.

        Args:
            depth: how many.
            post: hands the n-th buffer to the adapter, under the number `RECEIVE + n`.
        """
        self._post = post
        self._messages: deque[tuple[int, int]] = deque()
        """Buffer and bytes."""
        self._immediates: deque[tuple[int, int]] = deque()
        """Buffer used up, and the value."""
        for index in range(depth):
            post(index)

    def finish(self, entry: Finished) -> bool:
        """Take in one completion of the adapter; False if it is a failure, which is the end of the connection."""
        if entry.status:
            return False
        index = entry.number & ~RECEIVE
        if entry.opcode == RECEIVED_WITH_IMM:
            self._immediates.append((index, entry.imm))
        else:
            self._messages.append((index, entry.nbytes))
        return True

    def message(self) -> tuple[int, int] | None:
        """Buffer and bytes of the oldest message, which stays there until `release`."""
        return self._messages.popleft() if self._messages else None

    def immediate(self) -> int | None:
        """The oldest immediate; its receive goes back."""
        if not self._immediates:
            return None
        index, value = self._immediates.popleft()
        self.release(index)
        return value

    def release(self, index: int) -> None:
        """Post a receive again; on a queue pair that has failed it will be flushed."""
        self._post(index)
