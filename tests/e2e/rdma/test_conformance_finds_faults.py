"""A suite that cannot fail shows nothing: a provider with a fault must fail the case that is about it."""

from __future__ import annotations

import re

import pytest

import engines.rdma.conformance.cases  # noqa: F401 - defines them
from engines.rdma.arena import Arena
from engines.rdma.conformance import pair as pair_module
from engines.rdma.conformance.case import CASES
from engines.rdma.conformance.pair import Setting
from engines.rdma.device import Status
from engines.rdma.fork import Home
from engines.rdma.providers.shm import channel as channel_module
from engines.rdma.providers.shm.channel import SharedMemoryChannel
from engines.rdma.providers.shm.device import SharedMemoryDevice
from engines.rdma.providers.shm.mailbox import Mailbox
from engines.rdma.providers.shm.peer import Peer
from engines.rdma.providers.shm.table import Table

place, write = channel_module._place, SharedMemoryChannel.write
poll, end = SharedMemoryChannel.poll, SharedMemoryChannel._end
reset, put_immediate = SharedMemoryDevice.reset, Mailbox.put_immediate


def lose_a_byte(peer, source, offset, address, nbytes):
    place(peer, source, offset, address, max(nbytes - 1, 0))


def keep_regions(self):
    regions = dict(self.regions)
    reset(self)
    self.regions.update(regions)


def say_success(self, request, status):
    end(self, request, Status.SUCCESS)


def signal_all(self, source, target, **arguments):
    return write(self, source, target, **{**arguments, "signaled": True})


def forget_every_hundredth(self, most=64):
    return [c for c in poll(self, most) if c.ticket % 100 != 99]


def swap(self, most=64):
    return list(reversed(poll(self, most)))


def keep_epoch(self):
    self.table.reset = lambda epoch: None
    reset(self)


def keep_outstanding(self):
    self._held.clear()
    SharedMemoryChannel.close(self)
    self._open_mailbox()
    self._closed = False


def drop_when_full(self):
    self._held.clear()


FAULTS = {
    "a byte is missing": (
        channel_module, "_place", lose_a_byte, "a write places exactly the bytes it was given",
    ),
    "keys are not checked": (
        Table, "check", lambda *_: Status.SUCCESS, "a wrong key is refused",
    ),
    "local regions outlive a reset": (
        SharedMemoryDevice, "reset", keep_regions, "a region that is not this devices is refused as local side",
    ),
    "errors are hidden": (
        SharedMemoryChannel, "_end", say_success, "what follows an error is flushed",
    ),
    "unsignalled requests complete": (
        SharedMemoryChannel, "write", signal_all, "an unsignalled request completes only if it fails",
    ),
    "completions are lost": (
        SharedMemoryChannel, "poll", forget_every_hundredth, "ten thousand writes posted at once lose nothing",
    ),
    "completions are out of order": (
        SharedMemoryChannel, "poll", swap, "every signalled request completes once in order",
    ),
    "immediates are lost": (
        Mailbox, "put_immediate", lambda *_: None, "an immediate arrives after all bytes of its write",
    ),
    "immediates overtake": (
        Mailbox, "put_immediate", lambda self, value: put_immediate(self, value ^ 1),
        "immediates wait for a slow receiver in order",
    ),
    "what is held back is dropped": (
        SharedMemoryChannel, "_advance", drop_when_full, "a receiver that is not ready is waited for",
    ),
    "a full mailbox is overwritten": (
        Mailbox, "room", lambda *_: True, "a receiver that is never ready is an error",
    ),
    "a dead peer is taken for a living one": (
        Peer, "runs", lambda *_: True, "requests to a peer that was killed end in time",
    ),
    "a stale descriptor is accepted": (
        SharedMemoryDevice, "reset", keep_epoch, "nothing is written through a descriptor from before a reset",
    ),
    "a reset forgets what is outstanding": (
        SharedMemoryChannel, "reset", keep_outstanding, "a reset ends whatever is outstanding",
    ),
    "a forked child may go on": (
        Home, "check", lambda *_: None, "a forked child may not use its parents device",
    ),
    "memory is not cleared": (
        SharedMemoryDevice, "_clear", lambda *_: None, "regions are aligned zeroed and apart",
    ),
    "the arena hands out one place twice": (
        Arena, "take", lambda self, nbytes, align: self.start, "regions are aligned zeroed and apart",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("target", "name", "fault", "case"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_found(monkeypatch, target, name, fault, case):
    monkeypatch.setattr(pair_module, "WAIT_SECONDS", 0.5)
    assert CASES[case].run(Setting("shm")).status == "ok"
    monkeypatch.setattr(target, name, fault)
    outcome = CASES[case].run(Setting("shm"))
    assert outcome.status == "failed"
    assert not re.match(r"\w+Error: ", outcome.message), "the fault itself is faulty"
