"""`request-driven`: the protocol of TensorFlow's `verbs` contribution, after its zero-copy rewrite.

The receiver drives it. For every tensor it sends a *request* with the tensor's metadata as it was last time and the
address where it now lies; the sender compares, and writes the payload there with the request's index as immediate.
If the metadata is another one (or none is known yet, in the first step), the sender clones the tensor, answers with
the new metadata, and the receiver makes room and requests again; the clone is then what is written
(tensorflow/tensorflow pull request 16005).

Against `zero-copy` it costs one message per tensor and half a round trip more in every step, but the sender needs to
know nothing in advance.
"""

from __future__ import annotations

import json
import struct
from collections import deque
from typing import TYPE_CHECKING, ClassVar

from engines.rdma.arena import Arena
from engines.rdma.device import WORD, Access, ChannelOptions, Descriptor
from engines.rdma.events import Events
from engines.rdma.metadata import BLOCK, Metadata, inside
from engines.rdma.placement import ALIGN, STEPS, ProtocolError, immediate, read_offer, require
from engines.rdma.transports.base import POISON
from engines.rdma.transports.one_sided import landing_bytes
from harness.api import HarnessError

if TYPE_CHECKING:
    from engines.rdma.device import Device
    from engines.rdma.executor import Operation
    from engines.rdma.tensors import Payload
    from engines.rdma.transports.base import Bytes1D, Setting, Sources

PREFIX = struct.Struct("<IB3x")
"""Index, kind of message; a metadata block follows."""
MESSAGE_BYTES = PREFIX.size + BLOCK.size
REQUEST, FIRST_REQUEST, NEW_METADATA = 1, 2, 3
DEPTH_PER_TENSOR = 4
"""A request, an immediate, and in the first step the new metadata and the second request."""


def options(setting: Setting) -> ChannelOptions:
    """A channel on which the requests of a whole step may be under way."""
    return ChannelOptions(depth=max(128, DEPTH_PER_TENSOR * setting.tensors), message_bytes=MESSAGE_BYTES)


class RequestDrivenSender:
    """Answers requests from memory in which the tensors were produced."""

    name: ClassVar[str] = "request-driven"

    def __init__(self, device: Device, setting: Setting) -> None:
        """Register room for clones, and a word for the end of a step."""
        self.device = device
        self.channel = device.channel(options(setting))
        self._word = device.allocate(WORD, access=Access.LOCAL_WRITE | Access.REMOTE_WRITE)
        self._done = self._word.view.cast("Q")
        self._clones = device.allocate(landing_bytes(setting), access=Access.LOCAL_WRITE, align=ALIGN)

    def offer(self, payload: Payload, sources: Sources) -> str:
        """Remember where the tensors lie; what the receiver must know."""
        if sources.region is None:
            raise HarnessError(f"{self.name}: {payload.name}: tensors must be produced in the registered arena")
        self._payload, self._sources = payload, sources
        self._events = Events(self.channel, f"{self.name} {payload.name}")
        self._done[0] = 0
        self._early: deque[bytes] = deque()
        self._room = Arena(0, self._clones.nbytes)
        self._cloned: dict[int, int] = {}
        return json.dumps({"done": self.device.describe(self._word).to_json()})

    def accept(self, text: str) -> None:
        """Take in where the receiver's memory lies."""
        target = read_offer(text, ("memory",))["memory"]
        assert isinstance(target, Descriptor)
        self._target = require(target, nbytes=0, access=Access.REMOTE_WRITE, what="memory")

    def step_operation(self, step: int) -> Operation[None]:
        """Answer until the receiver says that it has everything."""
        # Only now: a clone may be on its way until the receiver has said that the step is over.
        self._room.reset()
        self._cloned.clear()
        served = 0
        while self._done[0] < step:
            message = self._early.popleft() if self._early else self._events.message()
            if message is None:
                self._events.check()
                yield f"{self.name} {self._payload.name}", served
                continue
            served += 1
            index, kind, block = parse(message, self.name)
            if block.sequence == step + 1 and self._done[0] == step:
                # Between the two looks, the step ended and the receiver asked for the next.
                self._early.append(message)
                break
            self._answer(index, kind, block, step)
        if (found := self._done[0]) != step:
            raise ProtocolError(f"{self.name}: expected the end of step {step}, found that of {found}")
        self._events.check()

    def _answer(self, index: int, kind: int, block: Metadata, step: int) -> None:
        if kind not in (REQUEST, FIRST_REQUEST) or index >= len(self._sources) or block.sequence != step:
            raise ProtocolError(f"{self.name}: a request that cannot be served: kind {kind}, tensor {index}")
        tensor = self._payload.tensors[index]
        if kind == FIRST_REQUEST or (block.dtype, block.shape) != (tensor.dtype, tensor.shape):
            self._clone(index)
            metadata = Metadata(step, tensor.dtype, tensor.shape, 0, 0)
            self.channel.send(PREFIX.pack(index, NEW_METADATA) + metadata.pack())
            return
        at = inside(self._target, address=block.address, nbytes=tensor.nbytes, rkey=block.rkey)
        region, offset = self._sources.region, self._sources.slots[index].offset
        assert region is not None
        clone = self._cloned.pop(index, None)
        if clone is not None:
            region, offset = self._clones, clone
        self.channel.write(
            region, self._target, offset=offset, at=at, nbytes=tensor.nbytes, imm=immediate(index, step), signaled=False
        )

    def _clone(self, index: int) -> None:
        """Keep what was produced for the second request: its own buffer may be used again meanwhile."""
        source = self._sources[index]
        offset = self._cloned[index] = self._room.take(source.nbytes, ALIGN)
        self._clones.view[offset : offset + source.nbytes] = source.data
        self.device.ledger.count("tensor to clone", source.nbytes)

    def close(self) -> None:
        """Let go of the memory, and close the channel."""
        self._done.release()
        self.channel.close()


class RequestDrivenReceiver:
    """Requests every tensor into memory of its own arena."""

    name: ClassVar[str] = "request-driven"

    def __init__(self, device: Device, setting: Setting) -> None:
        """Register a landing place for the largest payload."""
        self.device = device
        self.channel = device.channel(options(setting))
        access = Access.LOCAL_WRITE | Access.REMOTE_WRITE
        self._memory = device.allocate(landing_bytes(setting), access=access, align=ALIGN)
        self._described = device.describe(self._memory)
        self._word = device.allocate(WORD, access=Access.LOCAL_WRITE)

    def offer(self, payload: Payload) -> str:
        """Forget all metadata; what the sender must know."""
        self._payload = payload
        self._events = Events(self.channel, f"{self.name} {payload.name}")
        self._arena = Arena(0, self._memory.nbytes)
        self._known: dict[int, Metadata] = {}
        return json.dumps({"memory": self._described.to_json()})

    def accept(self, text: str) -> None:
        """Take in where the word for the end of a step lies."""
        word = read_offer(text, ("done",))["done"]
        assert isinstance(word, Descriptor)
        self._target = require(word, nbytes=WORD, access=Access.REMOTE_WRITE, what="word")

    def step_operation(self, step: int) -> Operation[None]:
        """Request everything, make room for what is new, and tell the sender when all of it is there."""
        what = f"{self.name} {self._payload.name}"
        missing = dict.fromkeys(range(len(self._payload.tensors)))
        for index in missing:
            self._request(index, step)
        while missing:
            message = self._events.message()
            if message is not None:
                self._renew(*parse(message, what), step)
            elif self._arrived(next(iter(missing)), step):
                del missing[next(iter(missing))]
            else:
                self._events.check()
                yield what, len(missing), len(self._known)
        self._word.view[:WORD] = step.to_bytes(WORD, "little")
        self.channel.write(self._word, self._target, offset=0, at=0, nbytes=WORD, signaled=False)
        self._events.check()

    def _request(self, index: int, step: int) -> None:
        known = self._known.get(index)
        kind = REQUEST if known else FIRST_REQUEST
        dtype, shape = (known.dtype, known.shape) if known else ("uint8", (0,))
        address = known.address if known else self._described.address
        block = Metadata(step, dtype, shape, self._described.rkey, address)
        self.channel.send(PREFIX.pack(index, kind) + block.pack())

    def _renew(self, index: int, kind: int, metadata: Metadata, step: int) -> None:
        if kind != NEW_METADATA or metadata.sequence != step:
            raise ProtocolError(f"{self.name}: expected new metadata of step {step}, got message {kind}")
        old = self._known.pop(index, None)
        if old is not None:
            self._arena.give(old.address - self._described.address)
        offset = self._arena.take(metadata.nbytes, ALIGN)
        address = self._described.address + offset
        self._known[index] = Metadata(step, metadata.dtype, metadata.shape, self._described.rkey, address)
        self._request(index, step)

    def _arrived(self, index: int, step: int) -> bool:
        return self._events.arrival(index) == step % STEPS

    def received(self, index: int) -> Bytes1D:
        """A view of where the tensor lies."""
        import numpy as np

        metadata = self._known.get(index)
        if metadata is None:
            raise HarnessError(f"{self.name}: tensor {index} was not received")
        offset = metadata.address - self._described.address
        return np.frombuffer(self._memory.view[offset : offset + metadata.nbytes], np.uint8)

    def poison(self) -> None:
        """Overwrite every place."""
        self._memory.view[:] = bytes([POISON]) * self._memory.nbytes

    def close(self) -> None:
        """Close the channel."""
        self.channel.close()


def parse(message: bytes, what: str) -> tuple[int, int, Metadata]:
    """Index, kind and metadata of a message.

    Raises:
        ProtocolError: it is not one of this transport's.
    """
    if len(message) != MESSAGE_BYTES:
        raise ProtocolError(f"{what}: a message of {len(message)} bytes, expected {MESSAGE_BYTES}")
    index, kind = PREFIX.unpack_from(message)
    metadata = Metadata.unpack(message[PREFIX.size :])
    if metadata is None:
        raise ProtocolError(f"{what}: a message whose check is wrong")
    return index, kind, metadata
