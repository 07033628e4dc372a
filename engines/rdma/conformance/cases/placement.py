"""Bytes: the right ones, in the right place, in the right order."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from engines.rdma.conformance.case import case
from engines.rdma.conformance.expectations import Skipped, equal, expect
from engines.rdma.device import WORD, Status

if TYPE_CHECKING:
    from engines.rdma.conformance.pair import Pair

SIZES = (0, 1, 7, 8, 9, 1023, 1024, 1025, 4095, 4096, 4097, 2**20 + 3)
"""Around the path MTUs of RoCE (1024 and 4096), and one that is many packets and no whole number of words."""
DTYPES = ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8")
LARGEST = 32 * 2**20
"""A largest write above this is not exceeded: it would take too much memory and time."""


def _bytes(nbytes: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(nbytes)


@case()
def a_write_places_exactly_the_bytes_it_was_given(pair: Pair) -> None:
    """Every size, aligned and not; what lies around them stays."""
    for shift in (0, 1):
        for nbytes in SIZES:
            source = pair.near.region(nbytes + 16)
            memory, target = pair.far.published(nbytes + 16)
            source.view[:] = _bytes(nbytes + 16, nbytes)
            memory.view[:] = b"\xee" * (nbytes + 16)
            ticket = pair.near.channel.write(source, target, offset=shift, at=shift, nbytes=nbytes)
            done = pair.end_of(ticket)[0]
            equal((done.status, done.nbytes), (Status.SUCCESS, nbytes), f"the write of {nbytes} bytes")
            wanted = b"\xee" * shift + bytes(source.view[shift : shift + nbytes]) + b"\xee" * (16 - shift)
            expect(bytes(memory.view) == wanted, f"{nbytes} bytes written to offset {shift} are not those sent")


@case()
def a_read_fetches_exactly_the_bytes_that_were_asked_for(pair: Pair) -> None:
    """Every size, aligned and not; what lies around them stays."""
    for shift in (0, 1):
        for nbytes in SIZES:
            target = pair.near.region(nbytes + 16)
            memory, source = pair.far.published(nbytes + 16)
            memory.view[:] = _bytes(nbytes + 16, nbytes)
            target.view[:] = b"\xee" * (nbytes + 16)
            ticket = pair.near.channel.read(target, source, offset=shift, at=shift, nbytes=nbytes)
            done = pair.end_of(ticket)[0]
            equal((done.status, done.nbytes), (Status.SUCCESS, nbytes), f"the read of {nbytes} bytes")
            wanted = b"\xee" * shift + bytes(memory.view[shift : shift + nbytes]) + b"\xee" * (16 - shift)
            expect(bytes(target.view) == wanted, f"{nbytes} bytes read from offset {shift} are not those there")


@case()
def tensors_of_every_dtype_survive_there_and_back_bit_for_bit(pair: Pair) -> None:
    """All bit patterns, not-a-number too; views are numpy arrays without a copy."""
    import numpy as np

    count = 1003
    source, back = pair.near.region(count * 8), pair.near.region(count * 8)
    memory, remote = pair.far.published(count * 8)
    source.view[:] = _bytes(count * 8)
    for dtype in DTYPES:
        memory.view[:] = back.view[:] = bytes(count * 8)
        nbytes = count * np.dtype(dtype).itemsize
        pair.end_of(
            pair.near.channel.write(source, remote, offset=0, at=0, nbytes=nbytes),
            pair.near.channel.read(back, remote, offset=0, at=0, nbytes=nbytes),
        )
        sent = np.frombuffer(source.view, dtype, count)
        for arrived in (memory, back):
            found = np.frombuffer(arrived.view, dtype, count)
            expect(found.tobytes() == sent.tobytes(), f"{dtype} elements changed on the way")


@case()
def scalars_and_empty_tensors_are_moved_like_any_other(pair: Pair) -> None:
    """Neither is an error, alone or beside others."""
    empty, nothing = pair.near.region(0), pair.far.published(0)[1]
    scalar, (memory, place) = pair.near.region(8), pair.far.published(8)
    scalar.view[:] = _bytes(8)
    tickets = [
        pair.near.channel.write(empty, nothing, offset=0, at=0, nbytes=0),
        pair.near.channel.write(scalar, place, offset=0, at=0, nbytes=8),
        pair.near.channel.write(scalar, place, offset=8, at=8, nbytes=0),
        pair.near.channel.read(empty, nothing, offset=0, at=0, nbytes=0),
    ]
    equal([c.status for c in pair.end_of(*tickets)], [Status.SUCCESS] * 4, "writes and reads of 8 and 0 bytes")
    expect(bytes(memory.view) == bytes(scalar.view), "the scalar is not what was sent")


@case()
def writes_are_placed_in_the_order_posted(pair: Pair) -> None:
    """The last of many writes to one place is what remains, and no write overtakes another."""
    source = pair.near.region(8 * 300)
    memory, target = pair.far.published(16)
    words, seen = source.view.cast("Q"), memory.view.cast("Q")
    for value in range(300):
        words[value] = value + 1
    write = pair.near.channel.write
    tickets = []
    for value in range(300):
        write(source, target, offset=8 * value, at=0, nbytes=8, signaled=False)
        tickets.append(write(source, target, offset=8 * value, at=8, nbytes=8))
    latest = 0

    def look() -> None:
        nonlocal latest
        second, first = seen[1], seen[0]
        expect(first >= second >= latest, f"word 1 says {second} after {latest}, while word 0 says {first}")
        latest = second
        pair.look()

    pair.end_of(*tickets, look=look)
    equal(list(seen), [300, 300], "both words after the last write")
    words.release()
    seen.release()


@case()
def the_last_word_of_a_write_is_placed_last(pair: Pair) -> None:
    """Whoever sees the tail sees the payload."""
    if not pair.near.device.traits.in_order:
        raise Skipped("this device may place bytes out of order (traits.in_order)")
    payload = 64 * 1024
    source = pair.near.region(payload + WORD)
    memory, target = pair.far.published(payload + WORD)
    tail, sequence = memory.view[payload:].cast("Q"), source.view[payload:].cast("Q")
    for step in range(1, 21):
        content = bytes([step]) * payload
        source.view[:payload] = content
        sequence[0] = step
        ticket = pair.near.channel.write(source, target, offset=0, at=0, nbytes=payload + WORD)
        pair.until(lambda step=step: tail[0] == step, f"tail {step}")
        expect(bytes(memory.view[:payload]) == content, f"tail {step} came before its payload")
        pair.end_of(ticket)
    tail.release()
    sequence.release()


@case(capacity=2 * LARGEST)
def a_write_and_a_read_longer_than_the_longest_request_are_whole(pair: Pair) -> None:
    """The provider cuts them, and still completes each once."""
    limit = pair.near.device.traits.largest_write
    if limit > LARGEST // 2:
        raise Skipped(f"a request may be {limit} bytes long")
    nbytes = 2 * limit + 3
    source, back = pair.near.region(nbytes), pair.near.region(nbytes)
    memory, remote = pair.far.published(nbytes)
    source.view[:] = _bytes(nbytes)
    tickets = [
        pair.near.channel.write(source, remote, offset=0, at=0, nbytes=nbytes, imm=5),
        pair.near.channel.read(back, remote, offset=0, at=0, nbytes=nbytes),
    ]
    done = pair.end_of(*tickets)
    equal([(c.status, c.nbytes) for c in done], [(Status.SUCCESS, nbytes)] * 2, "the write and the read")
    equal(len(pair.near.done), 2, "completions")
    equal(pair.arrival(), 5, "the immediate")
    expect(bytes(memory.view) == bytes(source.view) == bytes(back.view), "the bytes are not those sent")


@case()
def both_ends_write_and_read_at_the_same_time(pair: Pair) -> None:
    """Neither direction disturbs the other."""
    nbytes = 100_003
    sides = []
    for index, (end, other) in enumerate(((pair.near, pair.far), (pair.far, pair.near))):
        source = end.region(nbytes)
        source.view[:] = _bytes(nbytes, index)
        memory, target = other.published(nbytes)
        sides.append((end, source, memory, target, end.region(nbytes)))
    for end, source, _, target, back in sides:
        end.channel.write(source, target, offset=0, at=0, nbytes=nbytes)
        end.channel.read(back, target, offset=0, at=0, nbytes=nbytes)
    pair.until(lambda: len(pair.near.done) == len(pair.far.done) == 2, "two completions at either end")
    for end, source, memory, _, back in sides:
        equal(end.statuses(), [Status.SUCCESS] * 2, "the requests of one end")
        expect(bytes(memory.view) == bytes(source.view) == bytes(back.view), "the bytes are not those sent")
