"""Two-sided messages: control data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engines.rdma.conformance.case import case
from engines.rdma.conformance.expectations import equal, expect
from engines.rdma.conformance.statuses import Mistake, allowed
from engines.rdma.device import ChannelState, Status

if TYPE_CHECKING:
    from engines.rdma.conformance.pair import Pair


@case(message_bytes=3000)
def messages_arrive_whole_and_in_order(pair: Pair) -> None:
    """Every length up to the longest, the empty one too."""
    messages = [bytes([index % 251]) * nbytes for index, nbytes in enumerate((0, 1, 7, 8, 1023, 2999, 3000))]
    equal(pair.far.channel.receive(), None, "a message before any was sent")
    for message in messages:
        pair.near.channel.send(message)
    for message in messages:
        equal(pair.message(), message, f"the message of {len(message)} bytes")
    equal(pair.far.channel.receive(), None, "a message more")


@case(message_bytes=3000)
def a_message_is_what_it_was_when_it_was_sent(pair: Pair) -> None:
    """The caller may reuse its memory at once."""
    content = bytearray(b"first")
    pair.near.channel.send(bytes(content))
    content[:] = b"later"
    equal(pair.message(), b"first", "the message")


@case(far={"message_bytes": 64})
def a_message_longer_than_the_peers_buffer_fails(pair: Pair) -> None:
    """And is not handed over, in whole or in part; 64 bytes are."""
    equal(pair.status_of(pair.near.channel.send(bytes(64))), Status.SUCCESS, "a message of 64 bytes into 64")
    equal(pair.message(), bytes(64), "the message")
    status = pair.status_of(pair.near.channel.send(bytes(65)))
    kinds = allowed(pair.setting.provider, Mistake.TOO_LONG)
    expect(status in kinds, f"a message of 65 bytes into 64 ended {status}, not {', '.join(kinds)}")
    equal(pair.far.channel.receive(), None, "a message that did not fit")
    pair.until(lambda: pair.far.channel.state is ChannelState.ERROR, "the error of the far end")


@case(depth=4, rnr_retries=7)
def a_receiver_that_is_not_ready_is_waited_for(pair: Pair) -> None:
    """With retries without end, messages wait as long as it takes."""
    channel = pair.near.channel
    tickets = [channel.send(bytes([index])) for index in range(40)]
    pair.until(lambda: pair.near.done, "the first completion", look=pair.near.collect)
    for _ in range(200):
        pair.near.collect()
        pair.give_way()
    expect(len(pair.near.done) < 40, "all 40 messages fit into a queue of depth 4 that nobody emptied")
    equal(channel.state, ChannelState.READY, "the state while waiting")
    equal([pair.message() for _ in range(40)], [bytes([index]) for index in range(40)], "messages")
    equal({c.status for c in pair.end_of(*tickets)}, {Status.SUCCESS}, "statuses")


@case(depth=4, rnr_retries=1)
def a_receiver_that_is_never_ready_is_an_error(pair: Pair) -> None:
    """After the retries that were asked for; what fitted arrived, what followed is flushed."""
    tickets = [pair.near.channel.send(bytes([index])) for index in range(40)]
    statuses = [c.status for c in pair.end_of(*tickets, look=pair.near.collect)]
    sent = statuses.index(next(status for status in statuses if status is not Status.SUCCESS))
    expect(sent >= 4, f"a queue of depth 4 took {sent} messages")
    kinds = allowed(pair.setting.provider, Mistake.NOT_READY)
    expect(statuses[sent] in kinds, f"message {sent} ended {statuses[sent]}, not {', '.join(kinds)}")
    equal(set(statuses[sent + 1 :]), {Status.FLUSHED}, "what followed")
    equal(pair.near.channel.state, ChannelState.ERROR, "the state")
    equal([pair.message() for _ in range(sent)], [bytes([index]) for index in range(sent)], "messages that fitted")


@case()
def channels_of_one_device_do_not_mix(pair: Pair) -> None:
    """Neither messages, nor immediates, nor errors."""
    near, far = pair.another()
    source = pair.near.region(8)
    _, target = pair.far.published(8)
    near.send(b"second")
    pair.near.channel.send(b"first")
    near.write(source, target, offset=0, at=0, nbytes=8, imm=2)
    pair.near.channel.write(source, target, offset=0, at=0, nbytes=8, imm=1)
    equal((pair.message(), pair.arrival()), (b"first", 1), "what came over the first channel")
    for look, wanted in ((far.receive, b"second"), (far.arrived, 2)):
        equal(pair.next_of(look, "an arrival on the second channel"), wanted, "what came over the second channel")
    done: list[object] = []

    def collect() -> None:
        done.extend(near.poll())
        pair.look()

    ticket = near.write(source, target, offset=0, at=4, nbytes=8)
    pair.until(lambda: len(done) == 3, "the end of the second channel's requests", look=collect)
    equal(near.state, ChannelState.ERROR, f"the channel of request {ticket}")
    equal(pair.near.channel.state, ChannelState.READY, "the other channel")
    ticket = pair.near.channel.write(source, target, offset=0, at=0, nbytes=8)
    equal(pair.status_of(ticket), Status.SUCCESS, "a write over the other channel")
