"""The shared-memory provider: what arrives, and what is refused."""

from __future__ import annotations

import gc
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engines.rdma.device import (
    Access,
    ChannelOptions,
    ChannelState,
    Descriptor,
    InvalidDescriptor,
    OutOfMemory,
    ProviderUnavailable,
    Status,
    Unavailable,
)
from engines.rdma.providers import open_device
from engines.rdma.providers.shm.table import REGIONS

EVERYTHING = Access.LOCAL_WRITE | Access.REMOTE_READ | Access.REMOTE_WRITE
SIZES = [0, 1, 7, 8, 4095, 4096, 4097, 2**20 + 3]
DTYPES = ["float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8"]


@pytest.fixture
def pair():
    """Two devices of this process and a channel from the first to the second."""
    near, far = open_device("shm", 4 * 2**20), open_device("shm", 4 * 2**20)
    channel, back = joined(near, far)
    yield near, far, channel
    channel.close()
    back.close()
    near.close()
    far.close()


def joined(near, far, **options):
    """Both ends of a connection between two devices."""
    ends = near.channel(ChannelOptions(**options)), far.channel(ChannelOptions(**options))
    ends[0].connect(ends[1].address())
    ends[1].connect(ends[0].address())
    return ends


def only(channel):
    completions = channel.poll()
    assert len(completions) == 1
    assert channel.poll() == []
    return completions[0]


@pytest.mark.parametrize("nbytes", SIZES)
@pytest.mark.parametrize("shift", [0, 1], ids=["aligned", "odd"])
def test_a_write_places_exactly_the_bytes_it_was_given(pair, nbytes, shift):
    near, far, channel = pair
    source = near.allocate(nbytes + 16, access=EVERYTHING)
    target = far.allocate(nbytes + 16, access=EVERYTHING)
    source.view[:] = np.random.default_rng(nbytes).bytes(nbytes + 16)
    target.view[:] = b"\xee" * (nbytes + 16)

    channel.write(source, far.describe(target), offset=shift, at=shift, nbytes=nbytes)

    done = only(channel)
    assert (done.status, done.nbytes) == (Status.SUCCESS, nbytes)
    expected = b"\xee" * shift + bytes(source.view[shift : shift + nbytes]) + b"\xee" * (16 - shift)
    assert bytes(target.view) == expected


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_survives_a_write_and_a_read_bit_for_bit(pair, dtype):
    near, far, channel = pair
    count = 1003
    source = near.allocate(count * 8, access=EVERYTHING)
    back = near.allocate(count * 8, access=EVERYTHING)
    target = far.allocate(count * 8, access=EVERYTHING)
    source.view[:] = np.random.default_rng(5).bytes(count * 8)
    nbytes = count * np.dtype(dtype).itemsize

    channel.write(source, far.describe(target), offset=0, at=0, nbytes=nbytes)
    channel.read(back, far.describe(target), offset=0, at=0, nbytes=nbytes)

    assert [c.status for c in channel.poll()] == [Status.SUCCESS, Status.SUCCESS]
    sent = np.frombuffer(source.view, dtype, count)
    for arrived in (np.frombuffer(target.view, dtype, count), np.frombuffer(back.view, dtype, count)):
        assert arrived.tobytes() == sent.tobytes()


def test_an_unsignaled_write_completes_only_when_it_fails(pair):
    near, far, channel = pair
    source = near.allocate(64, access=EVERYTHING)
    target = far.describe(far.allocate(64, access=EVERYTHING))
    channel.write(source, target, offset=0, at=0, nbytes=64, signaled=False)
    assert channel.poll() == []
    ticket = channel.write(source, target, offset=0, at=32, nbytes=64, signaled=False)
    assert [(c.ticket, c.status) for c in channel.poll()] == [(ticket, Status.REMOTE_ACCESS)]


FORGERIES = {
    "wrong key": lambda d: replace(d, rkey=d.rkey ^ 1),
    "another address": lambda d: replace(d, address=d.address + 64),
    "region that does not exist": lambda d: replace(d, region=d.region + 1),
    "region beyond the table": lambda d: replace(d, region=REGIONS),
    "another device": lambda d: replace(d, device="0" * 32),
}


@pytest.mark.parametrize("forge", FORGERIES.values(), ids=FORGERIES)
def test_a_descriptor_that_the_target_does_not_know_is_refused(pair, forge):
    near, far, channel = pair
    source = near.allocate(64, access=EVERYTHING)
    target = far.allocate(64, access=EVERYTHING)
    channel.write(source, forge(far.describe(target)), offset=0, at=0, nbytes=64)
    assert only(channel).status is Status.REMOTE_ACCESS
    assert bytes(target.view) == bytes(64)


def test_a_descriptor_cannot_claim_more_bytes_or_rights_than_the_target_gave(pair):
    near, far, channel = pair
    source = near.allocate(128, access=EVERYTHING)
    target = far.allocate(64, access=Access.REMOTE_READ)
    claimed = replace(far.describe(target), nbytes=128, access=int(EVERYTHING))
    channel.write(source, claimed, offset=0, at=0, nbytes=64)
    assert only(channel).status is Status.REMOTE_ACCESS


@pytest.mark.parametrize(
    ("at", "nbytes"), [(0, 65), (1, 64), (64, 1), (-1, 8)], ids=["too long", "shifted", "past the end", "before"]
)
def test_a_write_outside_the_remote_region_is_refused(pair, at, nbytes):
    near, far, channel = pair
    source = near.allocate(128, access=EVERYTHING)
    target = far.allocate(64, access=EVERYTHING)
    channel.write(source, far.describe(target), offset=0, at=at, nbytes=nbytes)
    assert only(channel).status is Status.REMOTE_ACCESS


@pytest.mark.parametrize(("offset", "nbytes"), [(0, 65), (60, 8), (-1, 8), (0, -1)])
def test_a_write_from_outside_the_local_region_is_refused(pair, offset, nbytes):
    near, far, channel = pair
    source = near.allocate(64, access=EVERYTHING)
    target = far.describe(far.allocate(128, access=EVERYTHING))
    channel.write(source, target, offset=offset, at=0, nbytes=nbytes)
    assert only(channel).status is Status.LOCAL_PROTECTION


@pytest.mark.parametrize(
    ("remote", "local", "status"),
    [
        (Access.REMOTE_WRITE, EVERYTHING, Status.REMOTE_ACCESS),
        (Access.REMOTE_READ, Access.REMOTE_READ, Status.LOCAL_PROTECTION),
    ],
    ids=["remote not readable", "local not writable"],
)
def test_a_read_needs_both_rights(pair, remote, local, status):
    near, far, channel = pair
    target = near.allocate(64, access=local)
    source = far.describe(far.allocate(64, access=remote))
    channel.read(target, source, offset=0, at=0, nbytes=64)
    assert only(channel).status is status


def test_a_descriptor_from_before_a_reset_is_stale_and_nothing_is_written(pair):
    near, far, channel = pair
    source = near.allocate(64, access=EVERYTHING)
    source.view[:] = b"\x01" * 64
    old = far.describe(far.allocate(64, access=EVERYTHING))
    far.reset()
    fresh = far.allocate(64, access=EVERYTHING)
    channel.write(source, old, offset=0, at=0, nbytes=64)
    assert only(channel).status is Status.STALE_REGION
    assert bytes(fresh.view) == bytes(64)


def test_memory_that_is_allocated_again_after_a_reset_is_zero(pair):
    near, _, _ = pair
    near.allocate(128, access=EVERYTHING).view[:] = b"\xff" * 128
    near.reset()
    assert bytes(near.allocate(256, access=EVERYTHING).view) == bytes(256)


def test_a_local_region_from_before_a_reset_is_refused(pair):
    near, far, channel = pair
    old = near.allocate(64, access=EVERYTHING)
    near.reset()
    target = far.describe(far.allocate(64, access=EVERYTHING))
    channel.write(old, target, offset=0, at=0, nbytes=64)
    assert only(channel).status is Status.LOCAL_PROTECTION


def test_after_a_failure_requests_are_flushed_until_reset(pair):
    near, far, channel = pair
    source = near.allocate(64, access=EVERYTHING)
    target = far.describe(far.allocate(64, access=EVERYTHING))
    channel.write(source, replace(target, rkey=0), offset=0, at=0, nbytes=8)
    channel.write(source, target, offset=0, at=0, nbytes=8, signaled=False)
    channel.send(b"note")
    assert [c.status for c in channel.poll()] == [Status.REMOTE_ACCESS, Status.FLUSHED, Status.FLUSHED]
    assert channel.state is ChannelState.ERROR
    channel.reset()
    assert channel.state is ChannelState.UNCONNECTED
    channel.write(source, target, offset=0, at=0, nbytes=8)
    assert only(channel).status is Status.FLUSHED
    other = far.channel()
    channel.connect(other.address())
    assert channel.state is ChannelState.READY
    channel.write(source, target, offset=0, at=0, nbytes=8)
    assert only(channel).status is Status.SUCCESS
    other.close()


def test_a_closed_peer_ends_a_request_with_a_status():
    near, far = open_device("shm", 4096), open_device("shm", 4096)
    channel, back = joined(near, far)
    source = near.allocate(64, access=EVERYTHING)
    target = far.describe(far.allocate(64, access=EVERYTHING))
    far.close()
    assert not channel.alive()
    channel.write(source, target, offset=0, at=0, nbytes=64)
    assert only(channel).status is Status.RETRY_EXCEEDED
    channel.close()
    back.close()
    near.close()


def test_messages_arrive_in_order_and_one_too_long_for_the_peer_fails(pair):
    near, far, _ = pair
    channel, back = joined(near, far, message_bytes=5000)
    for message in (b"one", b"", b"three" * 1000):
        channel.send(message)
    assert [back.receive() for _ in range(4)] == [b"one", b"", b"three" * 1000, None]
    channel.send(bytes(5001))
    assert [c.status for c in channel.poll()] == [Status.SUCCESS] * 3 + [Status.REMOTE_INVALID]
    channel.close()
    back.close()


def test_a_full_mailbox_holds_requests_back_in_order_and_loses_none(pair):
    near, far, _ = pair
    channel, back = joined(near, far, depth=4)
    source, target = near.allocate(8, access=EVERYTHING), far.describe(far.allocate(8, access=EVERYTHING))
    for index in range(50):
        channel.send(bytes([index]))
        channel.write(source, target, offset=0, at=0, nbytes=8, imm=index)
    done, messages, immediates = [], [], []
    while len(done) < 100:
        done += channel.poll()
        messages += filter(None, [back.receive()])
        immediates += [imm for imm in [back.arrived()] if imm is not None]
    while (imm := back.arrived()) is not None:
        immediates.append(imm)
    while message := back.receive():
        messages.append(message)
    assert [c.ticket for c in done] == list(range(100))
    assert {c.status for c in done} == {Status.SUCCESS}
    assert messages == [bytes([index]) for index in range(50)]
    assert immediates == list(range(50))
    channel.close()
    back.close()


def test_a_mailbox_that_stays_full_is_receiver_not_ready_and_flushes_what_follows(pair):
    near, far, _ = pair
    channel, back = joined(near, far, depth=1, rnr_retries=0)
    for _ in range(3):
        channel.send(b"note")
    assert [c.status for c in channel.poll()] == [Status.SUCCESS, Status.RECEIVER_NOT_READY, Status.FLUSHED]
    assert channel.state is ChannelState.ERROR
    channel.close()
    back.close()


def test_two_channels_cannot_write_one_mailbox(pair):
    near, far, _ = pair
    third, free = near.channel(), far.channel()
    third.connect(free.address())
    fourth = near.channel()
    with pytest.raises(ProviderUnavailable, match="another channel has joined this end"):
        fourth.connect(free.address())
    for end in (third, fourth, free):
        end.close()


def change(**fields):
    return lambda good: json.dumps({**json.loads(good), **fields})


BAD_DESCRIPTORS = {
    "not JSON": (lambda good: "{", "must be JSON"),
    "a list": (lambda good: "[]", "exactly the fields"),
    "a field more": (change(more=1), "exactly the fields"),
    "text for a number": (change(nbytes="64"), "'nbytes' must be int, got str"),
    "a boolean": (change(region=True), "'region' must be int, got bool"),
    "a float": (change(address=1.5), "'address' must be int, got float"),
    "negative": (change(nbytes=-1), "'nbytes' must be a 64-bit unsigned number, got -1"),
    "too large": (change(address=2**64), "'address' must be a 64-bit unsigned number"),
    "number for text": (change(device=7), "'device' must be str, got int"),
}


@pytest.mark.parametrize(("spoil", "message"), BAD_DESCRIPTORS.values(), ids=BAD_DESCRIPTORS)
def test_an_untrusted_descriptor_is_checked_like_any_input(pair, spoil, message):
    _, far, _ = pair
    good = far.describe(far.allocate(64, access=EVERYTHING)).to_json()
    assert Descriptor.from_json(good).to_json() == good
    with pytest.raises(InvalidDescriptor, match=message):
        Descriptor.from_json(spoil(good))


BAD_ADDRESSES = {
    "not JSON": (lambda good: "?", InvalidDescriptor, "must be JSON"),
    "negative pid": (change(pid=-1), InvalidDescriptor, "'pid'"),
    "text for a number": (change(memory_file="3"), InvalidDescriptor, "'memory_file'"),
    "a field more": (change(more=1), InvalidDescriptor, "exactly the fields"),
    "another provider": (change(provider="verbs"), InvalidDescriptor, "cannot join one of provider 'verbs'"),
    "another file": (change(memory_inode=1), InvalidDescriptor, "not the one that was published"),
    "another size": (change(mailbox_bytes=10), InvalidDescriptor, "not the one that was published"),
    "another device": (change(uid="0" * 32), InvalidDescriptor, "not the device it claims"),
    "another host": (change(host="elsewhere"), ProviderUnavailable, "not on one host"),
    "no such process": (change(pid=2**22 + 1), ProviderUnavailable, "cannot be reached from here"),
}


@pytest.mark.parametrize(("spoil", "error", "message"), BAD_ADDRESSES.values(), ids=BAD_ADDRESSES)
def test_an_address_that_is_not_the_peers_is_refused(pair, spoil, error, message):
    near, far, _ = pair
    end, peer = near.channel(), far.channel()
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(error, match=message):
        end.connect(spoil(peer.address()))
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert end.state is ChannelState.UNCONNECTED
    end.connect(peer.address())
    assert end.state is ChannelState.READY
    end.close()
    peer.close()


def test_memory_of_the_arena_can_be_registered_and_other_memory_not(pair):
    near, far, channel = pair
    region = near.allocate(256, access=Access.LOCAL_WRITE)
    part = near.register(region.view[64:128], access=EVERYTHING)
    part.view[:] = b"\x07" * 64
    assert bytes(region.view[64:128]) == b"\x07" * 64
    target = far.allocate(64, access=EVERYTHING)
    channel.write(part, far.describe(target), offset=0, at=0, nbytes=64)
    assert bytes(target.view) == b"\x07" * 64
    with pytest.raises(ProviderUnavailable, match="own arena") as refusal:
        near.register(memoryview(bytearray(64)), access=EVERYTHING)
    assert refusal.value.reason is Unavailable.MEMORY


def test_an_arena_that_is_too_small_says_how_much_is_short():
    device = open_device("shm", 4096)
    device.allocate(4000, access=EVERYTHING)
    with pytest.raises(OutOfMemory, match="bytes too small for 200 more"):
        device.allocate(200, access=EVERYTHING)
    device.close()


def test_nothing_is_left_in_the_process_or_the_file_system_after_closing():
    gc.collect()  # what earlier tests caught holds their frames, and those their devices
    shared = Path("/dev/shm")
    names = set(shared.iterdir()) if shared.is_dir() else set()
    files = len(list(Path("/proc/self/fd").iterdir()))
    near, far = open_device("shm", 2**20), open_device("shm", 2**20)
    channel, back = joined(near, far)
    channel.reset()
    channel.close()
    back.close()
    near.close()
    far.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == files
    maps = Path("/proc/self/maps").read_text()
    assert "rdma-arena" not in maps
    assert "rdma-mailbox" not in maps
    if shared.is_dir():
        assert not {path for path in set(shared.iterdir()) - names if "rdma" in path.name}
