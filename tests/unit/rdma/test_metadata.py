"""Dynamic placement: the metadata block, and what a receiver does not do on a block's word alone."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest

from engines.rdma.device import Descriptor, OutOfMemory
from engines.rdma.metadata import BLOCK, InvalidMetadata, Metadata, inside
from engines.rdma.placement import ProtocolError
from engines.rdma.tensors import Payload, Tensor

PAYLOAD = Payload("p", (Tensor("w", (100,), "uint8"), Tensor("v", (3, 5), "float32"), Tensor("none", (0, 2), "int8")))


def exhaust(operation):
    for _ in operation:
        continue


GOOD = Metadata(sequence=7, dtype="float32", shape=(3, 5), rkey=0xDEADBEEF, address=0x1000, flags=2)


def test_the_layout_is_the_documented_one():
    block = GOOD.pack()
    assert (len(block), BLOCK.size) == (128, 128)
    assert struct.unpack_from("<Q", block, 0) == (7,)
    assert (block[8], block[9]) == (1, 2)  # float32 is the second type; rank 2
    assert struct.unpack_from("<HI", block, 10) == (2, 0xDEADBEEF)
    assert struct.unpack_from("<8Q", block, 16) == (3, 5, 0, 0, 0, 0, 0, 0)
    assert struct.unpack_from("<QQ", block, 80) == (60, 0x1000)
    assert struct.unpack_from("<I", block, 96) == (zlib.crc32(block[:96]),)
    assert block[100:120] == bytes(20)
    assert struct.unpack_from("<Q", block, 120) == (7,)


@pytest.mark.parametrize("at", [0, 8, 17, 84, 90, 97, 121])
def test_a_block_that_is_not_whole_says_nothing(at):
    block = bytearray(GOOD.pack())
    block[at] ^= 1
    assert Metadata.unpack(bytes(block)) is None


def sealed(**change):
    """A block that is whole, and says what no sender would."""
    fields = {"code": 1, "rank": 2, "dims": (3, 5, 0, 0, 0, 0, 0, 0), "nbytes": 60} | change
    head = struct.pack("<QBBHI8QQQ", 7, fields["code"], fields["rank"], 0, 0, *fields["dims"], fields["nbytes"], 0)
    return head + struct.pack("<I20xQ", zlib.crc32(head), 7)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"code": 200}, "type 200"),
        ({"rank": 9}, "rank 9"),
        ({"rank": 1}, r"rank 1 and dimensions \[3, 5"),
        ({"nbytes": 61}, r"61 bytes for float32\[3, 5\]"),
        ({"nbytes": 2**63}, r"9223372036854775808 bytes for float32\[3, 5\]"),
    ],
)
def test_a_whole_block_that_makes_no_sense_is_refused(change, what):
    assert Metadata.unpack(sealed()) is not None
    with pytest.raises(InvalidMetadata, match=what):
        Metadata.unpack(sealed(**change))


def test_more_dimensions_than_the_block_has_are_refused():
    with pytest.raises(InvalidMetadata, match="a tensor of 9 dimensions: a metadata block has room for 8"):
        Metadata(1, "int8", (1,) * 9, 0, 0).pack()


@pytest.mark.parametrize("change", [{"address": 999}, {"address": 1041}, {"rkey": 6}, {"nbytes": 101}])
def test_memory_outside_what_the_peer_published_is_never_read(change):
    published = Descriptor("d", 0, 1, address=1000, nbytes=100, rkey=5, access=2)
    named = {"address": 1040, "nbytes": 60, "rkey": 5}
    assert inside(published, **named) == 40
    with pytest.raises(InvalidMetadata, match="do not lie in the memory that the peer published"):
        inside(published, **named | change)


def test_the_senders_buffer_is_free_only_after_the_release_word(ranks):
    pair = ranks("zero-copy", [PAYLOAD], placement="dynamic")
    sending, receiving = pair.sender.step_operation(1), pair.receiver.step_operation(1)
    assert next(sending)[1] == "release"
    assert next(sending)[1] == "release"  # announced, and nothing fetched yet
    exhaust(receiving)
    with pytest.raises(StopIteration):
        next(sending)
    for index, source in enumerate(pair.sources):
        assert np.array_equal(pair.receiver.received(index), source)


def test_a_shape_may_change_from_step_to_step(ranks):
    big = Payload("p", tuple(Tensor(t.name, (4096,), "uint8") for t in PAYLOAD.tensors))
    pair = ranks("zero-copy", [PAYLOAD, big], placement="dynamic")
    pair.step(1)
    edges = pair.sender._edges
    view = pair.sender._sources.region.view
    view[:1000] = bytes(range(250)) * 4
    edges.post(0, 2, Tensor("w", (10, 100), "uint8"), 0)
    exhaust(pair.receiver._edges.fetch(0, 2))
    assert pair.receiver._edges.metadata(0).shape == (10, 100)
    assert bytes(pair.receiver.received(0)) == bytes(view[:1000])


def test_a_tensor_that_does_not_fit_is_refused_with_what_is_short(ranks):
    pair = ranks("zero-copy", [PAYLOAD], placement="dynamic")
    edges = pair.receiver._edges
    edges._arena.take(edges._arena.largest)
    pair.sender._edges.post(0, 1, PAYLOAD.tensors[0], 0)
    with pytest.raises(OutOfMemory, match="too small for 100 more"):
        next(edges.fetch(0, 1))


def test_an_announcement_of_a_later_step_is_a_protocol_error(ranks):
    pair = ranks("zero-copy", [PAYLOAD], placement="dynamic")
    pair.sender._edges.post(0, 5, PAYLOAD.tensors[0], 0)
    with pytest.raises(ProtocolError, match="zero-copy w: expected the announcement of step 1, found that of 5"):
        next(pair.receiver._edges.fetch(0, 1))


def test_memory_of_the_last_step_is_used_again(ranks):
    pair = ranks("copy", [PAYLOAD], placement="dynamic")
    pair.step(1)
    used = pair.receiver._edges._arena.used
    for step in range(2, 6):
        pair.step(step)
    assert pair.receiver._edges._arena.used == used
