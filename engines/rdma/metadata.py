"""Dynamic placement: for a tensor whose shape is known only when it has been produced.

The sender cannot write where nothing was placed. It writes a *metadata block* of 128 bytes instead, which says what
the tensor is and where it lies; the receiver polls the block, allocates the tensor in its own arena, reads the payload
from the sender's memory, and writes a *release word* back. Until then the sender's buffer must live and keep its
contents. Little endian::

    0   u64 sequence (head)     8  u8 dtype   9  u8 rank   10  u16 flags   12  u32 rkey
    16  u64 dims[8]            80  u64 nbytes              88  u64 address
    96  u32 CRC-32 of bytes 0..95                         120  u64 sequence (tail)

A block is whole if both sequences are equal and the check is right. Anything else is a block that is still on its way
- also where bytes are placed in any order, so one protocol serves every device. A block that is whole and makes no
sense (an unknown type, a size that is not that of its shape, memory outside what the sender published) is refused.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engines.rdma.device import WORD, Access, Descriptor
from engines.rdma.placement import ALIGN, LOOKS_PER_CHECK, ProtocolError, read_offer, require
from engines.rdma.spec import ITEM_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engines.rdma.arena import Arena
    from engines.rdma.device import Channel, Device, Region
    from engines.rdma.events import Events
    from engines.rdma.executor import Operation
    from engines.rdma.tensors import Tensor

BLOCK = struct.Struct("<QBBHI8QQQI20xQ")
CHECKED = 96
"""Bytes that the CRC covers."""
MOST_DIMS = 8
DTYPES = tuple(ITEM_BYTES)
"""A type's code is its place here."""


class InvalidMetadata(ProtocolError):
    """A whole block that says what no sender of ours would."""


@dataclass(frozen=True)
class Metadata:
    """What a block says."""

    sequence: int
    dtype: str
    shape: tuple[int, ...]
    rkey: int
    address: int
    """Where the payload lies, in the address space of the sender's descriptors."""
    flags: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the payload."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    def pack(self) -> bytes:
        """The 128 bytes.

        Raises:
            InvalidMetadata: more dimensions than the block has room for.
        """
        rank = len(self.shape)
        if rank > MOST_DIMS:
            raise InvalidMetadata(f"a tensor of {rank} dimensions: a metadata block has room for {MOST_DIMS}")
        code, dims = DTYPES.index(self.dtype), (*self.shape, *(0,) * (MOST_DIMS - rank))
        fields = (self.sequence, code, rank, self.flags, self.rkey, *dims, self.nbytes, self.address)
        check = zlib.crc32(BLOCK.pack(*fields, 0, 0)[:CHECKED])
        return BLOCK.pack(*fields, check, self.sequence)

    @classmethod
    def unpack(cls, block: bytes | memoryview) -> Metadata | None:
        """What a block says, or None if it is not whole.

        Raises:
            InvalidMetadata: it is whole and makes no sense.
        """
        head, code, rank, flags, rkey, *dims, nbytes, address, check, tail = BLOCK.unpack(block)
        if head != tail or check != zlib.crc32(block[:CHECKED]):
            return None
        if code >= len(DTYPES) or rank > MOST_DIMS or any(dims[rank:]):
            raise InvalidMetadata(f"a metadata block with type {code}, rank {rank} and dimensions {dims}")
        found = cls(head, DTYPES[code], tuple(dims[:rank]), rkey, address, flags)
        if found.nbytes != nbytes:
            raise InvalidMetadata(f"a metadata block of {nbytes} bytes for {found.dtype}{list(found.shape)}")
        return found


def inside(descriptor: Descriptor, *, address: int, nbytes: int, rkey: int) -> int:
    """Offset of a stretch that the peer names, in a region that it published before.

    Raises:
        InvalidMetadata: it lies outside, or has another key: nothing is read or written on the word of a block alone.
    """
    at = address - descriptor.address
    if rkey != descriptor.rkey or at < 0 or at + nbytes > descriptor.nbytes:
        raise InvalidMetadata(
            f"{nbytes} bytes at address {address} do not lie in the memory that the peer published "
            f"({descriptor.nbytes} bytes at {descriptor.address})"
        )
    return at


def blocks_bytes(count: int) -> int:
    """Registered bytes that the metadata blocks of `count` tensors need."""
    return count * BLOCK.size


class DynamicSender:
    """Announces tensors, and keeps them until they were fetched."""

    def __init__(
        self,
        device: Device,
        channel: Channel,
        events: Events,
        *,
        source: Region,
        blocks: Region,
        words: Region,
        names: Sequence[str],
    ) -> None:
        """Prepare to send; memory is registered once and comes from outside.

        Args:
            device: of this rank.
            channel: to the receiver.
            events: of that channel.
            source: registered memory in which the tensors lie, open to `REMOTE_READ`.
            blocks: registered memory for one block a tensor.
            words: registered memory for one release word a tensor, open to `REMOTE_WRITE`.
            names: of the tensors.
        """
        self._device, self._channel, self._events = device, channel, events
        self._source, self._blocks, self._words, self._names = source, blocks, words, tuple(names)
        self._described = device.describe(source)
        self._released = words.view[: len(names) * WORD].cast("Q")
        for index in range(len(names)):
            self._released[index] = 0
        self._target: Descriptor | None = None

    def offer(self) -> str:
        """What the receiver must know (JSON): where the tensors and the release words lie."""
        describe = self._device.describe
        return json.dumps({"release": describe(self._words).to_json(), "source": self._described.to_json()})

    def accept(self, text: str) -> None:
        """Take in the receiver's offer.

        Raises:
            InvalidDescriptor: it is malformed, or its memory too small.
        """
        blocks = read_offer(text, ("blocks",))["blocks"]
        assert isinstance(blocks, Descriptor)
        need = blocks_bytes(len(self._names))
        self._target = require(blocks, nbytes=need, access=Access.REMOTE_WRITE, what="metadata blocks")

    def post(self, index: int, step: int, tensor: Tensor, offset: int) -> None:
        """Announce a tensor that lies at `offset` in the source; the last step's must have been released.

        Raises:
            InvalidMetadata: it has too many dimensions.
        """
        assert self._target is not None
        address = self._described.address + offset
        metadata = Metadata(step, tensor.dtype, tensor.shape, self._described.rkey, address)
        at = index * BLOCK.size
        self._blocks.view[at : at + BLOCK.size] = metadata.pack()
        self._channel.write(self._blocks, self._target, offset=at, at=at, nbytes=BLOCK.size, signaled=False)

    def until_released(self, index: int, step: int) -> Operation[None]:
        """Wait until the receiver has fetched a step's tensor; from then on its buffer may be used again.

        Raises:
            ProtocolError: the receiver released a later step.
        """
        looks = 0
        while (found := self._released[index]) < step:
            if looks % LOOKS_PER_CHECK == 0:
                self._events.check()
            looks += 1
            yield self._names[index], "release"
        if found > step:
            raise ProtocolError(f"{self._names[index]}: expected release of step {step}, found {found}")

    def close(self) -> None:
        """Let go of views into the memory."""
        self._released.release()


class DynamicReceiver:
    """Sees announcements, makes room, and fetches."""

    def __init__(
        self,
        device: Device,
        channel: Channel,
        events: Events,
        *,
        region: Region,
        arena: Arena,
        blocks: Region,
        words: Region,
        names: Sequence[str],
    ) -> None:
        """Clear the blocks.

        Args:
            device: of this rank.
            channel: to the sender.
            events: of that channel.
            region: registered memory in which tensors are placed.
            arena: hands out stretches of `region` (from 0).
            blocks: registered memory for one block a tensor, open to `REMOTE_WRITE`.
            words: registered memory from which release words are written, one a tensor.
            names: of the tensors.
        """
        self._device, self._channel, self._events = device, channel, events
        self._region, self._arena, self._blocks, self._words = region, arena, blocks, words
        self._names = tuple(names)
        self._release = words.view[: len(names) * WORD].cast("Q")
        self._placed: dict[int, tuple[int, Metadata]] = {}
        blocks.view[: blocks_bytes(len(names))] = bytes(blocks_bytes(len(names)))
        self._heads = blocks.view[: blocks_bytes(len(names))].cast("Q")
        self._source: Descriptor | None = None
        self._target: Descriptor | None = None

    def offer(self) -> str:
        """What the sender must know (JSON): where the metadata blocks lie."""
        return json.dumps({"blocks": self._device.describe(self._blocks).to_json()})

    def accept(self, text: str) -> None:
        """Take in the sender's offer.

        Raises:
            InvalidDescriptor: it is malformed, or its memory too small.
        """
        offer = read_offer(text, ("release", "source"))
        source, words = offer["source"], offer["release"]
        assert isinstance(source, Descriptor)
        assert isinstance(words, Descriptor)
        need = len(self._names) * WORD
        self._source = require(source, nbytes=0, access=Access.REMOTE_READ, what="tensors")
        self._target = require(words, nbytes=need, access=Access.REMOTE_WRITE, what="release words")

    def fetch(self, index: int, step: int) -> Operation[None]:
        """Wait for the announcement, make room, and read the tensor; the last step's content is given up.

        Raises:
            InvalidMetadata: the announcement makes no sense.
            ProtocolError: it is of a later step.
            OutOfMemory: the tensor does not fit into the arena.
        """
        name, block = self._names[index], self._block(index)
        word = index * BLOCK.size // WORD
        while (metadata := self._announced(word, block, step, name)) is None:
            yield name
        source = self._source
        assert source is not None
        nbytes = metadata.nbytes
        at = inside(source, address=metadata.address, nbytes=nbytes, rkey=metadata.rkey)
        self.free(index)
        offset = self._arena.take(nbytes, ALIGN)
        self._placed[index] = offset, metadata
        if nbytes:
            ticket = self._channel.read(self._region, source, offset=offset, at=at, nbytes=nbytes)
            self._events.expect(ticket)
            while not self._events.finished(ticket):
                yield name, "payload"

    def _block(self, index: int) -> memoryview:
        return self._blocks.view[index * BLOCK.size : (index + 1) * BLOCK.size]

    def _announced(self, word: int, block: memoryview, step: int, name: str) -> Metadata | None:
        if self._heads[word] < step:
            return None
        # Whole or not is judged on a copy: the peer may still be writing the block itself.
        found = Metadata.unpack(bytes(block))
        if found is not None and found.sequence > step:
            raise ProtocolError(f"{name}: expected the announcement of step {step}, found that of {found.sequence}")
        return found

    def release(self, index: int, step: int) -> None:
        """Tell the sender that its buffer is free."""
        assert self._target is not None
        self._release[index] = step
        at = index * WORD
        self._channel.write(self._words, self._target, offset=at, at=at, nbytes=WORD, signaled=False)
        self._events.check()

    def metadata(self, index: int) -> Metadata:
        """What was announced last of a tensor that was fetched."""
        return self._placed[index][1]

    def tensor(self, index: int) -> memoryview:
        """The bytes of a tensor that was fetched."""
        offset, metadata = self._placed[index]
        return self._region.view[offset : offset + metadata.nbytes]

    def free(self, index: int) -> None:
        """Give a fetched tensor's memory back to the arena, if there is one."""
        placed = self._placed.pop(index, None)
        if placed is not None:
            self._arena.give(placed[0])

    def close(self) -> None:
        """Give everything back, and let go of views into the memory."""
        for index in list(self._placed):
            self.free(index)
        self._release.release()
        self._heads.release()
