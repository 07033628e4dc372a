"""After an error: everything ends, and a reset makes a working channel of it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from engines.rdma.conformance.case import case
from engines.rdma.conformance.expectations import equal, expect
from engines.rdma.conformance.statuses import Mistake, allowed
from engines.rdma.device import ChannelState, Status

if TYPE_CHECKING:
    from collections.abc import Callable

    from engines.rdma.conformance.pair import Pair

TIMEOUT, RETRIES = 12, 3
SLACK_SECONDS = 3.0
"""On real clocks: a process of a loaded or emulated machine may be kept from looking for so long."""


def bound(pair: Pair) -> float:
    """Seconds on the device's clock within which a request to a peer that is gone must end: twice all retries."""
    waits = 2 * (RETRIES + 1) * 4.096e-6 * 2**TIMEOUT
    return waits if pair.setting.provider == "sim" else waits + SLACK_SECONDS


@case()
def what_follows_an_error_is_flushed(pair: Pair) -> None:
    """Outstanding or posted later, signalled or not; nothing of it takes effect, at either end."""
    local = pair.near.region(64)
    local.view[:] = b"\x01" * 64
    memory, remote = pair.far.published(64)
    channel = pair.near.channel
    tickets = [channel.write(local, replace(remote, rkey=remote.rkey ^ 1), offset=0, at=0, nbytes=8)]
    tickets += [
        channel.write(local, remote, offset=0, at=0, nbytes=8),
        channel.write(local, remote, offset=0, at=0, nbytes=8, signaled=False, imm=1),
        channel.read(local, remote, offset=0, at=0, nbytes=8),
        channel.send(b"note"),
    ]
    done = pair.end_of(*tickets)
    expect(done[0].status in allowed(pair.setting.provider, Mistake.REMOTE), f"the first ended {done[0].status}")
    equal([c.status for c in done[1:]], [Status.FLUSHED] * 4, "what was posted with it")
    equal(channel.state, ChannelState.ERROR, "the state")
    later = [channel.write(local, remote, offset=0, at=0, nbytes=8, signaled=False), channel.send(b"note")]
    equal([c.status for c in pair.end_of(*later)], [Status.FLUSHED] * 2, "what was posted later")
    equal([c.ticket for c in pair.near.done], tickets + later, "completions, once each, in order")
    equal(bytes(memory.view), bytes(64), "the target")
    equal((pair.far.channel.receive(), pair.far.channel.arrived()), (None, None), "arrivals")


@case()
def both_ends_see_a_forbidden_access(pair: Pair) -> None:
    """As with queue pairs: the responder is in error too, and its own requests end."""
    local, back = pair.near.region(8), pair.far.region(8)
    _, remote = pair.far.published(8)
    home = pair.near.device.describe(local)
    pair.status_of(pair.near.channel.write(local, replace(remote, rkey=remote.rkey ^ 1), offset=0, at=0, nbytes=8))
    pair.until(lambda: pair.far.channel.state is ChannelState.ERROR, "the error of the far end")
    ticket = pair.far.channel.write(back, home, offset=0, at=0, nbytes=8)
    pair.until(lambda: pair.far.done, "the end of the far end's request")
    equal([(c.ticket, c.status) for c in pair.far.done], [(ticket, Status.FLUSHED)], "the far end's completions")


@case(timeout=TIMEOUT, retries=RETRIES)
def a_reset_leaves_the_error_and_gives_a_working_channel(pair: Pair) -> None:
    """With another address; regions and descriptors outlive it. Again and again."""
    local = pair.near.region(64)
    memory, remote = pair.far.published(64)
    for turn in range(1, 6):
        old = pair.near.channel.address()
        pair.status_of(pair.near.channel.write(local, replace(remote, rkey=remote.rkey ^ 1), offset=0, at=0, nbytes=8))
        pair.near.channel.reset()
        equal(pair.near.channel.state, ChannelState.UNCONNECTED, "the state after a reset")
        expect(pair.near.channel.address() != old, "the address is the same after a reset")
        pair.far.channel.reset()
        pair.connect()
        equal(pair.near.channel.state, ChannelState.READY, "the state after connecting")
        pair.near.done.clear()
        pair.far.done.clear()
        local.view[:] = bytes([turn]) * 64
        tickets = [
            pair.near.channel.write(local, remote, offset=0, at=0, nbytes=64, imm=turn),
            pair.near.channel.send(bytes([turn])),
        ]
        equal([c.status for c in pair.end_of(*tickets)], [Status.SUCCESS] * 2, "requests after the reset")
        equal((pair.arrival(), pair.message()), (turn, bytes([turn])), "arrivals after the reset")
        equal(bytes(memory.view), bytes([turn]) * 64, "the target after the reset")


@case(depth=4, rnr_retries=7)
def a_reset_ends_whatever_is_outstanding(pair: Pair) -> None:
    """Each ticket once, in order; nothing held back shows up on the next connection."""
    channel = pair.near.channel
    tickets = [channel.send(bytes([index])) for index in range(40)]
    channel.reset()
    done = pair.end_of(*tickets, look=pair.near.collect)
    equal([c.ticket for c in pair.near.done], tickets, "completions, once each, in order")
    statuses = [c.status for c in done]
    sent = statuses.count(Status.SUCCESS)
    equal(statuses, [Status.SUCCESS] * sent + [Status.FLUSHED] * (40 - sent), "statuses")
    expect(sent < 40, "40 messages fitted into a queue of depth 4")
    pair.far.channel.reset()
    pair.connect()
    channel.send(b"fresh")
    equal(pair.message(), b"fresh", "the first message of the new connection")


@case()
def a_request_on_a_channel_that_is_not_connected_is_flushed(pair: Pair) -> None:
    """Posting never raises for it."""
    local = pair.near.region(8)
    _, remote = pair.far.published(8)
    pair.near.channel.reset()
    ticket = pair.near.channel.write(local, remote, offset=0, at=0, nbytes=8)
    equal(pair.status_of(ticket, look=pair.near.collect), Status.FLUSHED, "a write before connecting")


def _end_of_peer(pair: Pair, leave: Callable[[], None], what: str) -> None:
    """Post into the void; everything ends in time."""
    local = pair.near.region(1024)
    _, remote = pair.far.published(1024)
    channel = pair.near.channel
    equal(pair.status_of(channel.write(local, remote, offset=0, at=0, nbytes=1024)), Status.SUCCESS, "a write before")
    pair.near.done.clear()
    leave()
    ends_in_time(pair, [
        lambda: channel.write(local, remote, offset=0, at=0, nbytes=1024),
        lambda: channel.write(local, remote, offset=0, at=0, nbytes=1024, signaled=False),
        lambda: channel.read(local, remote, offset=0, at=0, nbytes=1024),
        lambda: channel.send(b"note"),
    ], what)  # fmt: skip


def ends_in_time(pair: Pair, posts: list[Callable[[], int]], what: str) -> None:
    """Requests to a peer that is gone end, the first with `GONE`, in bounded time."""
    start = pair.near.device.clock()
    tickets = [post() for post in posts]
    statuses = [c.status for c in pair.end_of(*tickets, look=pair.near.collect)]
    took = pair.near.device.clock() - start
    kinds = allowed(pair.setting.provider, Mistake.GONE)
    expect(statuses[0] in kinds, f"a request {what} ended {statuses[0]}, not {' or '.join(kinds)}")
    equal(statuses[1:], [Status.FLUSHED] * (len(posts) - 1), f"requests behind it {what}")
    expect(took <= bound(pair), f"requests {what} took {took:.3f} s to end; at most {bound(pair):.3f} s are allowed")


@case(timeout=TIMEOUT, retries=RETRIES)
def requests_to_a_channel_that_was_closed_end_in_time(pair: Pair) -> None:
    """With the status of a peer that does not answer."""
    _end_of_peer(pair, pair.far.channel.close, "to a closed channel")


@case(timeout=TIMEOUT, retries=RETRIES)
def requests_to_a_channel_that_was_reset_end_in_time(pair: Pair) -> None:
    """What was meant for the old connection does not reach the new one."""
    _end_of_peer(pair, pair.far.channel.reset, "to a channel that was reset")


@case(timeout=TIMEOUT, retries=RETRIES)
def requests_to_a_device_that_was_closed_end_in_time(pair: Pair) -> None:
    """Channel and device."""

    def leave() -> None:
        pair.far.channel.close()
        pair.far.device.close()
        pair.idlers.remove(pair.far.device)

    _end_of_peer(pair, leave, "to a closed device")


@case()
def closing_twice_is_closing_once(pair: Pair) -> None:
    """In either order of the ends."""
    for end in (pair.far, pair.near):
        end.channel.close()
        end.channel.close()
        equal(end.channel.state, ChannelState.CLOSED, "the state")
        end.device.close()
        end.device.close()
