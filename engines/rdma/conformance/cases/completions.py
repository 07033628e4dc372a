"""Accounting: one completion for each signalled request, and none lost however many there are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engines.rdma.conformance.case import case
from engines.rdma.conformance.expectations import equal, expect
from engines.rdma.device import Operation, Status

if TYPE_CHECKING:
    from engines.rdma.conformance.pair import Pair


@case(depth=16)
def every_signalled_request_completes_once_in_order(pair: Pair) -> None:
    """Writes, reads and messages, with the operation and the bytes of each."""
    source = pair.near.region(64)
    _, target = pair.far.published(64)
    channel, wanted = pair.near.channel, []
    for index in range(60):
        nbytes = index % 9 * 8
        if index % 3 == 0:
            ticket = channel.write(source, target, offset=0, at=0, nbytes=nbytes)
            wanted.append((ticket, Operation.WRITE, Status.SUCCESS, nbytes))
        elif index % 3 == 1:
            ticket = channel.read(source, target, offset=0, at=0, nbytes=nbytes)
            wanted.append((ticket, Operation.READ, Status.SUCCESS, nbytes))
        else:
            ticket = channel.send(bytes(nbytes))
            wanted.append((ticket, Operation.SEND, Status.SUCCESS, nbytes))
    received = 0

    def receive() -> None:
        nonlocal received
        received += pair.far.channel.receive() is not None
        pair.look()

    pair.until(lambda: len(pair.near.done) >= 60, "60 completions", look=receive)
    pair.until(lambda: received >= 20, "20 messages", look=receive)
    found = [(c.ticket, c.operation, c.status, c.nbytes) for c in pair.near.done]
    equal(found, wanted, "completions")
    equal(sorted(t for t, *_ in wanted), [t for t, *_ in wanted], "tickets, which must rise")


@case(depth=16)
def an_unsignalled_request_completes_only_if_it_fails(pair: Pair) -> None:
    """A thousand of them, far more than the queue is deep, and one that is signalled."""
    source = pair.near.region(8)
    _, target = pair.far.published(64)
    write = pair.near.channel.write
    for _ in range(1000):
        write(source, target, offset=0, at=0, nbytes=8, signaled=False)
    last = write(source, target, offset=0, at=0, nbytes=8)
    pair.end_of(last)
    equal([(c.ticket, c.status) for c in pair.near.done], [(last, Status.SUCCESS)], "completions")
    failing = write(source, target, offset=0, at=60, nbytes=8, signaled=False)
    expect(pair.status_of(failing) is not Status.SUCCESS, "an unsignalled write past the end succeeded")


@case(depth=16)
def ten_thousand_writes_posted_at_once_lose_nothing(pair: Pair) -> None:
    """Posting is never refused, and no completion falls out of a queue that is too short."""
    count, places = 10_000, 1000
    source = pair.near.region(8 * count)
    memory, target = pair.far.published(8 * places)
    words = source.view.cast("Q")
    for index in range(count):
        words[index] = index
    write = pair.near.channel.write
    tickets = [write(source, target, offset=8 * index, at=8 * (index % places), nbytes=8) for index in range(count)]
    pair.until(lambda: len(pair.near.done) >= count, f"{count} completions")
    equal([c.ticket for c in pair.near.done], tickets, "tickets completed")
    equal({c.status for c in pair.near.done}, {Status.SUCCESS}, "statuses")
    found = memory.view.cast("Q")
    equal(list(found), list(range(count - places, count)), "what the last thousand writes left")
    words.release()
    found.release()


@case()
def a_poll_hands_out_at_most_as_many_as_were_asked_for(pair: Pair) -> None:
    """And the rest later."""
    source = pair.near.region(8)
    _, target = pair.far.published(8)
    tickets = [pair.near.channel.write(source, target, offset=0, at=0, nbytes=8) for _ in range(10)]
    found: list[int] = []

    def look() -> None:
        some = pair.near.channel.poll(3)
        expect(len(some) <= 3, f"poll(3) returned {len(some)} completions")
        found.extend(c.ticket for c in some)

    pair.until(lambda: len(found) == 10, "ten completions", look=look)
    equal(found, tickets, "tickets completed")
    equal(list(pair.near.channel.poll()), [], "completions after the last")


@case()
def counters_count_what_was_done(pair: Pair) -> None:
    """Requests and bytes at the end that asked, arrivals at the other."""
    source = pair.near.region(128)
    _, target = pair.far.published(128)
    channel = pair.near.channel
    before = pair.near.device.counters(), pair.far.device.counters()
    tickets = [
        channel.write(source, target, offset=0, at=0, nbytes=100),
        channel.write(source, target, offset=0, at=0, nbytes=28, imm=1),
        channel.read(source, target, offset=0, at=0, nbytes=64),
        channel.send(b"note"),
    ]
    equal([c.status for c in pair.end_of(*tickets)], [Status.SUCCESS] * 4, "statuses")
    pair.arrival()
    pair.message()
    near, far = pair.near.device.counters(), pair.far.device.counters()
    names = ("writes", "reads", "sends", "written_bytes", "read_bytes")
    found = {name: getattr(near, name) - getattr(before[0], name) for name in names}
    wanted = {"writes": 2, "reads": 1, "sends": 1, "written_bytes": 128, "read_bytes": 64}
    equal(found, wanted, "counters of the end that asked")
    equal(far.receives - before[1].receives, 2, "arrivals counted at the other end")
    equal(far.written_bytes, before[1].written_bytes, "bytes written by the end that asked nothing")


@case()
def the_clock_moves_forward_while_something_is_under_way(pair: Pair) -> None:
    """Of whatever kind its time is."""
    clock = pair.near.device.clock
    source = pair.near.region(2**20)
    _, target = pair.far.published(2**20)
    start = clock()
    pair.end_of(pair.near.channel.write(source, target, offset=0, at=0, nbytes=2**20))
    expect(clock() > start, f"the clock says {clock()} after a write of 1 MiB that began at {start}")
