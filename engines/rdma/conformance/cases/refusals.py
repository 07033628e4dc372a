"""What is refused, with which status, and that nothing is touched by it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from engines.rdma.conformance.case import case
from engines.rdma.conformance.expectations import equal, expect
from engines.rdma.conformance.pair import EVERYTHING
from engines.rdma.conformance.statuses import Mistake, allowed
from engines.rdma.device import Access, ChannelState, Status

if TYPE_CHECKING:
    from collections.abc import Callable

    from engines.rdma.conformance.pair import Pair
    from engines.rdma.device import Descriptor, Ticket

HUGE = 2**63


def _refused(pair: Pair, mistake: Mistake, what: str, post: Callable[[], Ticket], memory: memoryview) -> None:
    """A request ends as it must, `memory` keeps its bytes, and the channel can be used after a reset."""
    before = bytes(memory)
    status = pair.status_of(post())
    kinds = allowed(pair.setting.provider, mistake)
    expect(status in kinds, f"{what} ended {status}, not {' or '.join(kinds)}")
    expect(bytes(memory) == before, f"{what} changed memory")
    equal(pair.near.channel.state, ChannelState.ERROR, f"the state after {what}")
    pair.near.done.clear()
    pair.reconnect()


@case()
def a_wrong_key_is_refused(pair: Pair) -> None:
    """For writes and reads; a key is not guessed by its neighbour."""
    local = pair.near.region(64)
    local.view[:] = b"\x01" * 64
    memory, remote = pair.far.published(64)
    memory.view[:] = b"\x02" * 64
    for key in (remote.rkey ^ 1, remote.rkey ^ 0x100, 0, 2**32 - 1, HUGE):
        forged = replace(remote, rkey=key)
        for name in ("write", "read"):
            post = getattr(pair.near.channel, name)
            watched = memory.view if name == "write" else local.view
            _refused(
                pair, Mistake.REMOTE, f"a {name} with key {key:#x} for {remote.rkey:#x}",
                lambda post=post, forged=forged: post(local, forged, offset=0, at=0, nbytes=64), watched,
            )  # fmt: skip


@case()
def an_access_outside_the_remote_region_is_refused(pair: Pair) -> None:
    """Past either end, by a byte or by so much that addresses wrap; also where the descriptor claims more."""
    local = pair.near.region(256)
    local.view[:] = b"\x01" * 256
    around = pair.far.region(256)
    memory, remote = pair.far.published(64)
    expect(around.nbytes, "no memory beside the region")
    claimed = replace(remote, nbytes=2**20, access=int(EVERYTHING))
    moved = replace(remote, address=remote.address + 64)
    tries: tuple[tuple[Descriptor, int, int], ...] = (
        (remote, 0, 65), (remote, 1, 64), (remote, 64, 1), (remote, -1, 8), (remote, -8, 8), (remote, HUGE, 8),
        (remote, -HUGE, 8), (remote, 2**64 - 8, 8), (remote, 2**64, 8), (claimed, 0, 128), (claimed, 64, 64),
        (moved, 0, 64), (replace(remote, address=0), 0, 8), (replace(remote, address=2**64 - 8), 0, 8),
    )  # fmt: skip
    for target, at, nbytes in tries:
        for name in ("write", "read"):
            post = getattr(pair.near.channel, name)
            watched = memory.view if name == "write" else local.view
            _refused(
                pair, Mistake.REMOTE,
                f"a {name} of {nbytes} bytes at {at} of a region of 64 (address {target.address - remote.address:+})",
                lambda post=post, target=target, at=at, nbytes=nbytes: post(
                    local, target, offset=0, at=at, nbytes=nbytes
                ),
                watched,
            )  # fmt: skip


@case()
def an_access_that_the_target_does_not_allow_is_refused(pair: Pair) -> None:
    """Whatever the descriptor says."""
    local = pair.near.region(64)
    local.view[:] = b"\x01" * 64
    for name, access in (
        ("write", Access.REMOTE_READ), ("write", Access.LOCAL_WRITE),
        ("read", Access.LOCAL_WRITE | Access.REMOTE_WRITE), ("read", Access.LOCAL_WRITE),
    ):  # fmt: skip
        memory, remote = pair.far.published(64, access)
        watched = memory.view if name == "write" else local.view
        for descriptor in (remote, replace(remote, access=int(EVERYTHING))):
            post = getattr(pair.near.channel, name)
            _refused(
                pair, Mistake.REMOTE, f"a {name} where only {access!r} is allowed",
                lambda post=post, descriptor=descriptor: post(local, descriptor, offset=0, at=0, nbytes=64), watched,
            )  # fmt: skip


@case()
def an_access_outside_the_local_region_is_refused(pair: Pair) -> None:
    """Past either end, negative, or by so much that addresses wrap."""
    local = pair.near.region(64)
    memory, remote = pair.far.published(256)
    for offset, nbytes in ((0, 65), (60, 8), (64, 1), (-1, 8), (0, -1), (HUGE, 8), (-HUGE, 8), (2**64 - 8, 8)):
        for name in ("write", "read"):
            post = getattr(pair.near.channel, name)
            watched = memory.view if name == "write" else local.view
            _refused(
                pair, Mistake.LOCAL, f"a {name} of {nbytes} bytes from {offset} of a region of 64",
                lambda post=post, offset=offset, nbytes=nbytes: post(
                    local, remote, offset=offset, at=0, nbytes=nbytes
                ),
                watched,
            )  # fmt: skip


@case()
def a_region_that_is_not_this_devices_is_refused_as_local_side(pair: Pair) -> None:
    """The peer's, one with a wrong key, one that claims more, and one from before a reset."""
    memory, remote = pair.far.published(64)
    mine, stale = pair.near.region(64), pair.near.region(64)
    for what, region in (
        ("the peer's region", pair.far.region(64)),
        ("a region with a wrong key", replace(mine, lkey=mine.lkey ^ 1)),
        ("a region that claims more", replace(mine, nbytes=128, view=memoryview(bytearray(128)))),
        ("a region that does not exist", replace(mine, number=2**20)),
    ):
        _refused(
            pair, Mistake.LOCAL, f"a write from {what}",
            lambda region=region: pair.near.channel.write(region, remote, offset=0, at=0, nbytes=64), memory.view,
        )  # fmt: skip
    pair.near.device.reset()
    pair.near.region(64)
    _refused(
        pair, Mistake.LOCAL, "a write from a region from before a reset",
        lambda: pair.near.channel.write(stale, remote, offset=0, at=0, nbytes=64), memory.view,
    )  # fmt: skip


@case()
def a_read_into_memory_that_may_not_be_written_is_refused(pair: Pair) -> None:
    """The right to write locally is asked of the local region."""
    local = pair.near.region(64, Access.REMOTE_READ)
    memory, remote = pair.far.published(64)
    memory.view[:] = b"\x02" * 64
    _refused(
        pair, Mistake.LOCAL, "a read into a region without local write",
        lambda: pair.near.channel.read(local, remote, offset=0, at=0, nbytes=64), local.view,
    )  # fmt: skip


@case()
def a_descriptor_of_another_device_is_refused(pair: Pair) -> None:
    """Its own region sent back to it, and one of a device that does not exist."""
    local = pair.near.region(64)
    memory, remote = pair.far.published(64)
    own = pair.near.device.describe(pair.near.region(64))
    for what, descriptor in (
        ("of the writer itself", own),
        ("of the peer under another device's name", replace(remote, device="0" * len(remote.device))),
    ):
        _refused(
            pair, Mistake.REMOTE, f"a write with a descriptor {what}",
            lambda descriptor=descriptor: pair.near.channel.write(local, descriptor, offset=0, at=0, nbytes=64),
            memory.view,
        )  # fmt: skip


@case()
def nothing_is_written_through_a_descriptor_from_before_a_reset(pair: Pair) -> None:
    """Even though the new region lies where the old one lay."""
    local = pair.near.region(64)
    local.view[:] = b"\x01" * 64
    _, stale = pair.far.published(64)
    pair.far.device.reset()
    fresh, remote = pair.far.published(64)
    expect(remote.epoch > stale.epoch, f"the epoch is {remote.epoch} after {stale.epoch}")
    _refused(
        pair, Mistake.STALE, "a write through a stale descriptor",
        lambda: pair.near.channel.write(local, stale, offset=0, at=0, nbytes=64), fresh.view,
    )  # fmt: skip
    # A forger can copy the epoch; the key is another one all the same.
    _refused(
        pair, Mistake.STALE, "a write through a stale descriptor with the new epoch",
        lambda: pair.near.channel.write(local, replace(stale, epoch=remote.epoch), offset=0, at=0, nbytes=64),
        fresh.view,
    )  # fmt: skip
    ticket = pair.near.channel.write(local, remote, offset=0, at=0, nbytes=64)
    equal(pair.status_of(ticket), Status.SUCCESS, "a write through the new descriptor")
