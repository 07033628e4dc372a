"""Writes with an immediate: the specification's own word that all bytes are in place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engines.rdma.conformance.case import case
from engines.rdma.conformance.expectations import equal, expect, refused
from engines.rdma.device import Status

if TYPE_CHECKING:
    from engines.rdma.conformance.pair import Pair


@case()
def an_immediate_arrives_after_all_bytes_of_its_write(pair: Pair) -> None:
    """Whoever has the immediate has the payload, on every device."""
    payload = 100_001
    source = pair.near.region(payload)
    memory, target = pair.far.published(payload)
    for step in range(1, 21):
        content = bytes([step]) * payload
        source.view[:] = content
        ticket = pair.near.channel.write(source, target, offset=0, at=0, nbytes=payload, imm=step)
        equal(pair.arrival(), step, "the immediate")
        expect(bytes(memory.view) == content, f"immediate {step} came before its payload")
        equal(pair.status_of(ticket), Status.SUCCESS, "the write")
    equal(pair.far.channel.arrived(), None, "an immediate more")


@case()
def an_immediate_may_come_with_no_bytes(pair: Pair) -> None:
    """And be any 32-bit number."""
    source = pair.near.region(8)
    memory, target = pair.far.published(8)
    memory.view[:] = b"\xee" * 8
    values = (0, 1, 2**31, 2**32 - 1)
    for value in values:
        pair.near.channel.write(source, target, offset=0, at=0, nbytes=0, imm=value)
    equal([pair.arrival() for _ in values], list(values), "immediates")
    equal(bytes(memory.view), b"\xee" * 8, "the target")
    for value in (-1, 2**32):
        refused(
            ValueError,
            lambda value=value: pair.near.channel.write(source, target, offset=0, at=0, nbytes=0, imm=value),
            f"immediate {value}",
        )


@case(depth=8)
def immediates_wait_for_a_slow_receiver_in_order(pair: Pair) -> None:
    """Many more than the queue is deep; none is lost, none overtakes, messages between them neither."""
    source = pair.near.region(8)
    _, target = pair.far.published(8)
    channel, count = pair.near.channel, 500
    tickets = []
    for index in range(count):
        tickets.append(channel.write(source, target, offset=0, at=0, nbytes=8, imm=index, signaled=index % 7 == 0))
        if index % 50 == 0:
            channel.send(index.to_bytes(4, "little"))
    for _ in range(20):
        pair.near.collect()
        pair.give_way()
    immediates: list[int] = []
    messages: list[int] = []

    def take() -> None:
        imm, message = pair.far.channel.arrived(), pair.far.channel.receive()
        if imm is not None:
            immediates.append(imm)
        if message is not None:
            messages.append(int.from_bytes(message, "little"))
        pair.look()

    pair.until(lambda: len(immediates) >= count and len(messages) >= 10, f"{count} immediates", look=take)
    equal(immediates, list(range(count)), "immediates")
    equal(messages, list(range(0, count, 50)), "messages")
    wanted = [ticket for index, ticket in enumerate(tickets) if index % 7 == 0]
    pair.end_of(*wanted)
    equal(set(pair.near.statuses()), {Status.SUCCESS}, "statuses")
    equal(len(pair.near.done), len(wanted) + 10, "completions: the signalled writes, and the messages")
