"""What is particular to shared memory; what every provider owes is held by the conformance suite."""

from __future__ import annotations

import gc
import json
import os
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engines.rdma.device import (
    Access,
    ChannelOptions,
    ChannelState,
    HarnessError,
    InvalidDescriptor,
    ProviderUnavailable,
    Status,
    Unavailable,
)
from engines.rdma.memory import LARGE_PAGE
from engines.rdma.providers import open_device
from engines.rdma.providers.shm import channel as channel_module
from engines.rdma.providers.shm.mailbox import BUSY, BrokenMailbox, Mailbox, extent
from engines.rdma.providers.shm.segment import Place, Segment
from engines.rdma.providers.shm.table import HEADER, REGIONS

EVERYTHING = Access.LOCAL_WRITE | Access.REMOTE_READ | Access.REMOTE_WRITE
FILES = Path("/proc/self/fd")


@pytest.fixture
def devices():
    """Two devices of this process."""
    near, far = open_device("shm", 2**20), open_device("shm", 2**20)
    yield near, far
    near.close()
    far.close()


@pytest.fixture
def ends(devices):
    """Both ends of a connection between them."""
    near, far = joined(*devices)
    yield near, far
    near.close()
    far.close()


def joined(near, far, **options):
    ends = near.channel(ChannelOptions(**options)), far.channel(ChannelOptions(**options))
    ends[0].connect(ends[1].address())
    ends[1].connect(ends[0].address())
    return ends


def change(**fields):
    return lambda good: json.dumps({**json.loads(good), **fields})


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
    "no process at all": (change(pid=2**40), ProviderUnavailable, "cannot be reached from here"),
    "no such file": (change(mailbox_file=2**20), ProviderUnavailable, "cannot be mapped"),
}


@pytest.mark.parametrize(("spoil", "error", "message"), BAD_ADDRESSES.values(), ids=BAD_ADDRESSES)
def test_an_address_that_is_not_the_peers_is_refused_and_leaves_nothing_open(devices, spoil, error, message):
    end, peer = (device.channel() for device in devices)
    before = len(list(FILES.iterdir()))
    with pytest.raises(error, match=message):
        end.connect(spoil(peer.address()))
    assert len(list(FILES.iterdir())) == before
    assert end.state is ChannelState.UNCONNECTED
    end.connect(peer.address())
    assert end.state is ChannelState.READY
    end.close()
    peer.close()


def test_the_memory_of_a_device_is_no_mailbox(devices):
    end, peer = (device.channel() for device in devices)
    address = json.loads(peer.address())
    of_memory = {f"mailbox_{field}": address[f"memory_{field}"] for field in ("file", "inode", "bytes")}
    with pytest.raises(InvalidDescriptor, match="no mailbox"):
        end.connect(json.dumps(address | of_memory))
    end.close()
    peer.close()


def test_a_file_that_can_still_change_its_size_is_not_mapped():
    file = os.memfd_create("unsealed")
    os.ftruncate(file, 4096)
    place = Place(os.getpid(), file, os.fstat(file).st_ino, 4096)
    with pytest.raises(InvalidDescriptor, match="can still change its size"):
        Segment.attach(place)
    os.close(file)


@pytest.mark.parametrize(
    ("nbytes", "rounded"), [(0, 4096), (1, 4096), (4097, 8192), (2**21, 2**21), (2**21 + 1, 2**22)]
)
def test_a_segment_is_whole_pages_and_lies_where_they_can_be_large_in_every_process(nbytes, rounded):
    own = Segment.create("rdma-test", nbytes)
    other = Segment.attach(own.place)
    for segment in (own, other):
        assert segment.nbytes == segment.bytes.nbytes == rounded
        assert np.frombuffer(segment.bytes, np.uint8).ctypes.data % LARGE_PAGE == 0
    own.bytes[-1] = 7
    other.bytes[0] = 8
    assert (other.bytes[-1], own.bytes[0]) == (7, 8)
    with pytest.raises(PermissionError):
        os.ftruncate(own.file, 0)
    other.close()
    own.close()
    assert "rdma-test" not in Path("/proc/self/maps").read_text()


def test_more_memory_than_there_is_is_refused_before_it_is_asked_for():
    with pytest.raises(ProviderUnavailable, match=r"shared memory of \d+ bytes: \d+ bytes are available") as refusal:
        open_device("shm", 2**46)
    assert refusal.value.reason is Unavailable.MEMORY


def test_two_channels_cannot_write_one_mailbox(devices):
    first, second = devices[0].channel(), devices[0].channel()
    peer = devices[1].channel()
    first.connect(peer.address())
    with pytest.raises(ProviderUnavailable, match="another channel has joined this end"):
        second.connect(peer.address())
    first.close()
    second.connect(peer.address())
    for end in (second, peer):
        end.close()


def test_only_memory_of_the_devices_own_arena_can_be_registered(devices):
    with pytest.raises(ProviderUnavailable, match="own arena") as refusal:
        devices[0].register(memoryview(bytearray(64)), access=EVERYTHING)
    assert refusal.value.reason is Unavailable.MEMORY
    with pytest.raises(ProviderUnavailable, match="own arena"):
        devices[0].register(devices[0].segment.bytes[:64], access=EVERYTHING)


def test_the_table_of_regions_has_an_end_and_a_reset_empties_it(devices):
    near = devices[0]
    for _ in range(REGIONS):
        near.allocate(8, access=EVERYTHING)
    for register in (near.allocate, lambda _, access: near.register(memoryview(bytearray(8)), access=access)):
        with pytest.raises(ProviderUnavailable, match=f"at most {REGIONS} regions at a time"):
            register(8, access=EVERYTHING)
    near.reset()
    near.allocate(8, access=EVERYTHING)


def test_a_table_that_leads_out_of_the_segment_is_not_followed(devices, ends):
    near, far = devices
    region = far.allocate(64, access=EVERYTHING)
    target = far.describe(region)
    source = near.allocate(64, access=EVERYTHING)
    for address, nbytes in ((HEADER + 2**20 - 32, 64), (2**63, 64), (target.address, 2**40)):
        forged = replace(target, address=address, nbytes=nbytes)
        far.table.enter(forged)
        ends[0].write(source, forged, offset=0, at=0, nbytes=64)
        assert ends[0].poll()[-1].status is Status.REMOTE_ACCESS
        for end in ends:
            end.reset()
        ends[0].connect(ends[1].address())
        ends[1].connect(ends[0].address())


def test_a_descriptor_from_before_a_reset_is_called_stale(devices, ends):
    near, far = devices
    source, stale = near.allocate(64, access=EVERYTHING), far.describe(far.allocate(64, access=EVERYTHING))
    ends[0].write(source, stale, offset=0, at=0, nbytes=64)
    far.reset()
    ends[0].write(source, stale, offset=0, at=0, nbytes=64)
    assert [c.status for c in ends[0].poll()] == [Status.SUCCESS, Status.STALE_REGION]


@pytest.mark.parametrize("leave", ["device reset", "channel reset", "channel close"])
def test_memory_is_not_taken_away_under_a_write_that_is_under_way(monkeypatch, devices, ends, leave):
    near, far = devices
    source, target = near.allocate(64, access=EVERYTHING), far.describe(far.allocate(64, access=EVERYTHING))
    actions = {"device reset": far.reset, "channel reset": ends[1].reset, "channel close": ends[1].close}
    taking = threading.Thread(target=actions[leave])
    still = []

    def place(*arguments):
        taking.start()
        taking.join(0.1)
        still.append(taking.is_alive())

    monkeypatch.setattr(channel_module, "_place", place)
    ends[0].write(source, target, offset=0, at=0, nbytes=64)
    taking.join()
    assert still == [True]
    ends[0].write(source, target, offset=0, at=0, nbytes=64)
    assert [c.status for c in ends[0].poll()][1] in (Status.STALE_REGION, Status.RETRY_EXCEEDED)


def test_a_peer_that_was_stopped_in_a_write_is_not_waited_for_without_end(monkeypatch, devices, ends):
    monkeypatch.setattr(channel_module, "QUIESCE_SECONDS", 0.01)
    ends[0]._peer.mailbox.words[BUSY] = 1
    with pytest.raises(HarnessError, match=r"in the middle of an access for 0\.01 s"):
        devices[1].reset()
    ends[0]._peer.mailbox.words[BUSY] = 0
    devices[1].reset()


@pytest.fixture
def mailbox():
    memory = memoryview(bytearray(extent(4, 20)))
    return memory.cast("Q"), Mailbox.lay_out(memory, 4, 20)


def test_a_mailbox_goes_round(mailbox):
    _, box = mailbox
    for index in range(11):
        assert box.room()
        assert box.room_for_immediate()
        box.put(bytes([index]) * index)
        box.put_immediate(2**32 - 1 - index)
        assert box.take() == bytes([index]) * index
        assert box.take_immediate() == 2**32 - 1 - index
    assert box.take() is None
    assert box.take_immediate() is None
    for _ in range(4):
        box.put(b"")
        box.put_immediate(0)
    assert not box.room()
    assert not box.room_for_immediate()


BROKEN = {
    "more messages than places": (16, 5, Mailbox.take),
    "more immediates than places": (17, 5, Mailbox.take_immediate),
    "taken what was not put": (24, 1, Mailbox.room),
    "a length beyond its place": (32, 21, Mailbox.take),
    "an immediate of 33 bits": (32 + 4 * 4, 2**32, Mailbox.take_immediate),
}


@pytest.mark.parametrize(("word", "value", "use"), BROKEN.values(), ids=BROKEN)
def test_what_a_peer_may_have_broken_in_a_mailbox_is_an_error(mailbox, word, value, use):
    words, box = mailbox
    if word >= 32:
        box.put(b"")
        box.put_immediate(0)
    words[word] = value
    with pytest.raises(BrokenMailbox):
        use(box)


def test_nothing_is_left_in_the_process_or_the_file_system_after_closing():
    gc.collect()  # what earlier tests caught holds their frames, and those their devices
    shared = Path("/dev/shm")
    names = set(shared.iterdir()) if shared.is_dir() else set()
    files = len(list(FILES.iterdir()))
    near, far = open_device("shm", 2**20), open_device("shm", 2**20)
    channel, back = joined(near, far)
    channel.reset()
    channel.close()
    back.close()
    near.close()
    far.close()
    assert len(list(FILES.iterdir())) == files
    maps = Path("/proc/self/maps").read_text()
    assert "rdma-arena" not in maps
    assert "rdma-mailbox" not in maps
    if shared.is_dir():
        assert not {path for path in set(shared.iterdir()) - names if "rdma" in path.name}


def test_a_view_that_somebody_still_holds_outlives_its_device():
    device = open_device("shm", 2**20)
    view = device.allocate(64, access=EVERYTHING).view
    device.close()
    view[:] = b"\x01" * 64
    assert bytes(view) == b"\x01" * 64


def test_a_provider_that_does_not_exist_is_named_with_those_that_do():
    with pytest.raises(ValueError, match="no provider 'tcp'; there are shm, verbs, sim"):
        open_device("tcp", 2**20)
