from collections import deque

import pytest

from engines.rdma.device import Operation, Status
from engines.rdma.providers.verbs.adapter import RECEIVED_WITH_IMM, Finished, Opcode
from engines.rdma.providers.verbs.queues import RECEIVE, STATUSES, Piece, ReceiveQueue, Request, SendQueue, cut


class Adapter:
    """Takes `depth` work requests, as a queue pair does, and completes them as a test says."""

    def __init__(self, depth):
        self.depth = depth
        self.taken = []
        self.refuses = False
        self.failures = []
        self.done = deque()
        self.queue = SendQueue(depth, self.done, self.post, self.failures.append)
        self.settled = 0

    def post(self, entry, piece):
        assert len(self.taken) - self.settled < self.depth, "more outstanding than the queue pair takes"
        if self.refuses:
            raise OSError(12, "no")
        self.taken.append(entry)

    def complete(self, number, status=0):
        """What a queue pair does: a completion frees all before it."""
        self.settled = number + 1
        self.queue.finish(number, status)
        self.queue.advance()

    def complete_all(self):
        """Complete whatever was signalled, until nothing more comes."""
        while self.settled < len(self.taken):
            waiting = [e.number for e in self.taken[self.settled :] if e.signaled]
            if not waiting:
                return
            self.complete(waiting[0])


def write(queue, ticket, *, signaled=True, nbytes=8, refused=None):
    request = Request(ticket, Operation.WRITE, nbytes, signaled, refused=refused)
    queue.submit(iter([Piece(request, Opcode.WRITE, nbytes=nbytes)]))
    return request


def ended(adapter):
    return [(c.ticket, c.status) for c in adapter.done]


@pytest.mark.parametrize("depth", [2, 3, 8, 128])
def test_no_number_of_unsignalled_requests_fills_the_queue_for_good(depth):
    adapter = Adapter(depth)
    for ticket in range(10 * depth):
        write(adapter.queue, ticket, signaled=False)
    write(adapter.queue, 10 * depth)
    adapter.complete_all()
    assert len(adapter.taken) == 10 * depth + 1
    assert ended(adapter) == [(10 * depth, Status.SUCCESS)]
    gaps = [n for n, entry in enumerate(adapter.taken) if entry.signaled]
    assert max(b - a for a, b in zip([-1, *gaps], gaps, strict=False)) <= max(1, depth // 2)


def test_a_signalled_request_is_not_asked_about_twice():
    adapter = Adapter(8)
    for ticket in range(100):
        write(adapter.queue, ticket, signaled=ticket % 3 == 2)
        adapter.complete_all()
    assert [e.signaled for e in adapter.taken] == [n % 3 == 2 for n in range(100)]
    assert ended(adapter) == [(n, Status.SUCCESS) for n in range(100) if n % 3 == 2]


def test_what_finds_no_room_waits_and_goes_out_in_order():
    adapter = Adapter(4)
    for ticket in range(20):
        write(adapter.queue, ticket, nbytes=ticket)
    assert (adapter.queue.outstanding, adapter.queue.backlog) == (4, 16)
    adapter.complete_all()
    assert [e.nbytes for e in adapter.taken] == list(range(20))
    assert ended(adapter) == [(n, Status.SUCCESS) for n in range(20)]


def test_a_failure_ends_each_request_once_and_flushes_the_backlog_behind_what_was_posted():
    adapter = Adapter(4)
    for ticket in range(8):
        write(adapter.queue, ticket, signaled=ticket != 1)
    adapter.complete(0)
    adapter.complete(1, 10)
    assert adapter.failures == [Status.REMOTE_ACCESS]
    assert ended(adapter) == [(0, Status.SUCCESS), (1, Status.REMOTE_ACCESS)]
    for number in (2, 3, 4):
        adapter.complete(number, 5)
    write(adapter.queue, 8)
    assert ended(adapter)[2:] == [(n, Status.FLUSHED) for n in range(2, 9)]
    assert len(adapter.taken) == 5, "something was posted after the failure"


def test_a_piece_that_fails_ends_its_request_once_and_the_rest_of_it_is_silent():
    adapter = Adapter(8)
    request = Request(7, Operation.WRITE, 30)
    adapter.queue.submit(cut(request, Opcode.WRITE, (1000, 1), (2000, 2), 10))
    adapter.complete(1, 10)
    adapter.complete(2, 5)
    assert ended(adapter) == [(7, Status.REMOTE_ACCESS)]


def test_a_refused_request_ends_in_its_turn_and_lets_nothing_behind_it_through():
    adapter = Adapter(8)
    write(adapter.queue, 0, signaled=False)
    write(adapter.queue, 1)
    write(adapter.queue, 2, refused=Status.LOCAL_PROTECTION)
    write(adapter.queue, 3)
    assert [(e.nbytes, e.signaled) for e in adapter.taken] == [(8, False), (8, True), (0, True)]
    assert ended(adapter) == []
    adapter.complete(1)
    adapter.complete(2)
    assert ended(adapter) == [(1, Status.SUCCESS), (2, Status.LOCAL_PROTECTION), (3, Status.FLUSHED)]
    assert adapter.failures == [Status.LOCAL_PROTECTION]


def test_a_refused_unsignalled_request_is_told_of():
    adapter = Adapter(8)
    write(adapter.queue, 0, signaled=False, refused=Status.STALE_REGION)
    adapter.complete(0)
    assert ended(adapter) == [(0, Status.STALE_REGION)]


def test_an_adapter_that_takes_no_request_is_an_error_of_that_request():
    adapter = Adapter(8)
    write(adapter.queue, 0)
    adapter.refuses = True
    write(adapter.queue, 1)
    write(adapter.queue, 2)
    assert ended(adapter) == [(0, Status.FLUSHED), (1, Status.LOCAL_OPERATION), (2, Status.FLUSHED)]
    adapter.queue.finish(0, 0)
    assert len(ended(adapter)) == 3, "a completion of the adapter came late and was told of again"


def test_a_flush_ends_whatever_somebody_waits_for():
    adapter = Adapter(2)
    for ticket in range(5):
        write(adapter.queue, ticket, signaled=ticket != 1)
    adapter.queue.flush()
    # 1 was posted and asked for no answer: nobody knows how it ended.
    assert ended(adapter) == [(n, Status.FLUSHED) for n in (0, 2, 3, 4)]


def test_a_registration_for_one_request_is_given_back_when_that_ends():
    class Memory:
        closed = 0

        def close(self):
            self.closed += 1

    adapter, memories = Adapter(2), [Memory(), Memory(), Memory()]
    for ticket, memory in enumerate(memories):
        request = Request(ticket, Operation.SEND, 8, held=memory)
        adapter.queue.submit(iter([Piece(request, Opcode.SEND, nbytes=8)]))
    adapter.complete(0)
    assert [m.closed for m in memories] == [1, 0, 0]
    adapter.queue.flush()
    assert [m.closed for m in memories] == [1, 1, 1]


def test_nobody_hears_of_a_request_of_the_channels_own():
    adapter = Adapter(2)
    request = Request(0, Operation.WRITE, 0, internal=True)
    adapter.queue.submit(iter([Piece(request, Opcode.WRITE)]))
    adapter.complete(0, 12)
    assert ended(adapter) == []
    assert adapter.failures == [Status.RETRY_EXCEEDED]


@pytest.mark.parametrize(("nbytes", "largest"), [(0, 4), (1, 4), (4, 4), (5, 4), (12, 4), (13, 1), (7, 100)])
def test_pieces_cover_the_transfer_once_and_in_order(nbytes, largest):
    pieces = list(cut(Request(0, Operation.WRITE, nbytes), Opcode.WRITE, (100, 1), (900, 2), largest, imm=5))
    covered = [byte for p in pieces for byte in range(p.address - 100, p.address - 100 + p.nbytes)]
    assert covered == list(range(nbytes))
    assert all(p.remote - 900 == p.address - 100 and p.nbytes <= largest for p in pieces)
    assert [p.last for p in pieces] == [False] * (len(pieces) - 1) + [True]
    assert [p.opcode for p in pieces] == [Opcode.WRITE] * (len(pieces) - 1) + [Opcode.WRITE_WITH_IMM]


def test_every_failure_the_adapter_can_name_has_a_status():
    adapter = Adapter(2)
    write(adapter.queue, 0)
    adapter.complete(0, 19)
    assert ended(adapter) == [(0, Status.LOCAL_OPERATION)]
    assert [s for code, s in STATUSES.items() if s is Status.SUCCESS] == [STATUSES[0]]


def received(index, nbytes):
    return Finished(RECEIVE | index, 0, 128, nbytes, 0)


def immediate(index, value):
    return Finished(RECEIVE | index, 0, RECEIVED_WITH_IMM, 0, value)


def test_a_receive_goes_back_when_its_content_is_taken():
    posted = []
    queue = ReceiveQueue(3, posted.append)
    assert posted == [0, 1, 2]
    for entry in (received(0, 5), immediate(1, 77), received(2, 0)):
        assert queue.finish(entry)
    assert posted == [0, 1, 2]
    assert queue.message() == (0, 5)
    assert posted == [0, 1, 2], "the buffer went back before it was read"
    queue.release(0)
    assert queue.immediate() == 77
    assert posted == [0, 1, 2, 0, 1]
    assert (queue.immediate(), queue.message(), queue.message()) == (None, (2, 0), None)


def test_a_receive_that_failed_is_the_end_of_the_connection():
    queue = ReceiveQueue(1, lambda index: None)
    assert not queue.finish(Finished(RECEIVE | 0, 5, 0, 0, 0))
    assert queue.message() is None
