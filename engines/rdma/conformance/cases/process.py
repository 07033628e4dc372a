"""Other processes: a peer that is killed, and a child that was forked."""

from __future__ import annotations

import json
import os
import traceback
from typing import TYPE_CHECKING

from engines.rdma.conformance.case import case
from engines.rdma.conformance.cases.recovery import RETRIES, TIMEOUT, ends_in_time
from engines.rdma.conformance.expectations import Skipped, equal, expect
from engines.rdma.conformance.statuses import Mistake, allowed
from engines.rdma.conformance.victim import Victim
from engines.rdma.device import ChannelState, Status, WrongProcess

if TYPE_CHECKING:
    from collections.abc import Callable

    from engines.rdma.conformance.pair import Pair


@case(timeout=TIMEOUT, retries=RETRIES)
def requests_to_a_peer_that_was_killed_end_in_time(pair: Pair) -> None:
    """And this end can be used again, with another peer."""
    if pair.setting.one_process:
        raise Skipped("both devices of this provider live in one process")
    channel, local = pair.near.channel, pair.near.region(2**20)
    channel.reset()
    with Victim(pair.setting, nbytes=2**20, timeout=TIMEOUT, retries=RETRIES) as victim:
        channel.connect(victim.address)
        victim.connect(channel.address())
        remote = victim.target
        ticket = channel.write(local, remote, offset=0, at=0, nbytes=2**20)
        equal(pair.status_of(ticket, look=pair.near.collect), Status.SUCCESS, "a write while the peer lived")
        victim.kill()
        pair.near.done.clear()
        ends_in_time(pair, [
            lambda: channel.write(local, remote, offset=0, at=0, nbytes=2**20),
            lambda: channel.write(local, remote, offset=0, at=0, nbytes=8, signaled=False),
            lambda: channel.read(local, remote, offset=0, at=0, nbytes=8),
            lambda: channel.send(b"note"),
        ], "to a killed peer")  # fmt: skip
    equal(channel.state, ChannelState.ERROR, "the state")
    pair.near.done.clear()
    pair.reconnect()
    ticket = channel.write(local, pair.far.published(8)[1], offset=0, at=0, nbytes=8)
    equal(pair.status_of(ticket), Status.SUCCESS, "a write to another peer")


@case(timeout=TIMEOUT, retries=RETRIES)
def a_peer_killed_while_writes_are_outstanding_ends_each_of_them_once(pair: Pair) -> None:
    """Whatever had arrived by then has succeeded; one is in error, the rest is flushed."""
    if pair.setting.one_process:
        raise Skipped("both devices of this provider live in one process")
    channel, local = pair.near.channel, pair.near.region(2**20)
    channel.reset()
    with Victim(pair.setting, nbytes=2**20, timeout=TIMEOUT, retries=RETRIES) as victim:
        channel.connect(victim.address)
        victim.connect(channel.address())
        tickets = [channel.write(local, victim.target, offset=0, at=0, nbytes=2**20) for _ in range(20)]
        victim.kill()
        tickets.append(channel.write(local, victim.target, offset=0, at=0, nbytes=8))
        statuses = [c.status for c in pair.end_of(*tickets, look=pair.near.collect)]
    equal([c.ticket for c in pair.near.done], tickets, "completions, once each, in order")
    sent = statuses.count(Status.SUCCESS)
    kinds = allowed(pair.setting.provider, Mistake.KILLED)
    expect(statuses[sent] in kinds, f"the write that met the kill ended {statuses[sent]}, not {' or '.join(kinds)}")
    wanted = [Status.SUCCESS] * sent + [statuses[sent]] + [Status.FLUSHED] * (len(tickets) - sent - 1)
    equal(statuses, wanted, "statuses")


@case()
def a_forked_child_may_not_use_its_parents_device(pair: Pair) -> None:
    """It is told so by a typed error, and what it does to its copy does not reach the parent's."""
    local = pair.near.region(8)
    _, remote = pair.far.published(8)
    device, channel = pair.near.device, pair.near.channel
    address = channel.address()
    uses: dict[str, Callable[[], object]] = {
        "allocate": lambda: device.allocate(8, access=local.access),
        "register": lambda: device.register(local.view, access=local.access),
        "reset": device.reset,
        "channel": device.channel,
        "write": lambda: channel.write(local, remote, offset=0, at=0, nbytes=8),
        "read": lambda: channel.read(local, remote, offset=0, at=0, nbytes=8),
        "send": lambda: channel.send(b"note"),
        "receive": channel.receive,
        "arrived": channel.arrived,
        "poll": channel.poll,
        "connect": lambda: channel.connect(address),
        "channel reset": channel.reset,
    }
    equal(_in_child(uses, pair), dict.fromkeys(uses, WrongProcess.__name__), "what the child was told")
    channel.write(local, remote, offset=0, at=0, nbytes=8, imm=1)
    equal(pair.arrival(), 1, "the parent's next immediate")
    equal(pair.far.channel.receive(), None, "messages")


def _in_child(uses: dict[str, Callable[[], object]], pair: Pair) -> dict[str, str]:
    """What each use raises in a forked child, by name of the exception; the child closes its copies, too."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            found = {name: _raised(use) for name, use in uses.items()}
            for end in (pair.near, pair.far):
                end.channel.close()
                end.device.close()
            os.write(writer, json.dumps(found).encode())
        except BaseException:
            os.write(writer, json.dumps({"child": traceback.format_exc()}).encode())
        finally:
            # Neither the test runner's nor anybody else's cleaning up is this child's to do.
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    result: dict[str, str] = json.loads(text)
    return result


def _raised(use: Callable[[], object]) -> str:
    try:
        use()
    except Exception as error:
        return type(error).__name__
    return "nothing"
