"""`rpc-over-rdma`: remote procedure calls whose messages travel over RDMA, as an RPC library with an RDMA transport.

The message of the gRPC transports (protobuf, one a tensor) is cut into fragments, and each is sent into a receive
buffer of the peer's ring, which knows nothing of tensors: so every byte is serialised, copied into the ring, copied
out of it and put together again. To be fair to it, many fragments are in flight, packing a tensor overlaps sending the
one before where an adapter sends, and one reply is enough for a step.

Fragments carry no header: the channel keeps the order, so a message is announced by one small message of its own.
"""

from __future__ import annotations

import struct
from collections import deque
from typing import TYPE_CHECKING, ClassVar

from engines.rdma.device import ChannelOptions
from engines.rdma.events import Events
from engines.rdma.placement import ProtocolError
from engines.rdma.transports.messages import Packed, message_class, pack, unpack
from harness.api import HarnessError

if TYPE_CHECKING:
    from engines.rdma.device import Device
    from engines.rdma.executor import Operation
    from engines.rdma.tensors import Payload
    from engines.rdma.transports.base import Bytes1D, Setting, Sources

FRAGMENT = 64 * 1024
"""Bytes of a receive buffer: what RPC libraries over RDMA usually post."""
WINDOW = 32
"""Fragments in flight."""
HEADER = struct.Struct("<QQQ")
"""Step, tensor, bytes of the message that follows."""
REPLY = struct.Struct("<Q")
"""Step."""
OPTIONS = ChannelOptions(depth=2 * WINDOW, message_bytes=FRAGMENT)

SENDER_COPIES, RECEIVER_COPIES = 1, 2
"""Copies of a tensor's content beside `messages.COPIES`: into the ring; out of it, and into one piece again."""


class RpcSender:
    """A client on rank 0."""

    name: ClassVar[str] = "rpc-over-rdma"

    def __init__(self, device: Device, setting: Setting) -> None:  # noqa: ARG002 - the same for every payload
        """Make a channel with a ring of receive buffers at its far end."""
        message_class()
        self.device = device
        self.channel = device.channel(OPTIONS)

    def offer(self, payload: Payload, sources: Sources) -> str:
        """Remember where the tensors lie; an RPC library publishes nothing."""
        self._payload, self._sources = payload, sources
        self._events = Events(self.channel, f"{self.name} {payload.name}")
        return ""

    def accept(self, text: str) -> None:
        """Nothing to learn."""
        refuse_offer(text)

    def step_operation(self, step: int) -> Operation[None]:
        """Pack and send every tensor, and wait for the reply."""
        ledger, events, flight = self.device.ledger, self._events, deque()
        for index, (tensor, source) in enumerate(zip(self._payload.tensors, self._sources, strict=True)):
            wire = memoryview(pack(tensor, source, step=step, index=index, ledger=ledger))
            pieces = [wire[at : at + FRAGMENT] for at in range(0, len(wire), FRAGMENT)]
            for piece in (HEADER.pack(step, index, len(wire)), *pieces):
                while len(flight) >= WINDOW:
                    if events.finished(flight[0]):
                        flight.popleft()
                    else:
                        yield f"{self.name} {tensor.name}", flight[0]
                flight.append(events.expect(self.channel.send(piece)))
            # The contract of `Channel.send`: the provider copies a message into its own registered ring.
            ledger.count("message to send ring", source.nbytes)
        while flight:
            if events.finished(flight[0]):
                flight.popleft()
            else:
                yield f"{self.name} fragments", flight[0]
        while (reply := events.message()) is None:
            events.check()
            yield f"{self.name} reply"
        if len(reply) != REPLY.size or REPLY.unpack(reply)[0] != step:
            raise ProtocolError(f"{self.name}: the reply is not that of step {step}")

    def close(self) -> None:
        """Close the channel."""
        self.channel.close()


class RpcReceiver:
    """A server on rank 1."""

    name: ClassVar[str] = "rpc-over-rdma"

    def __init__(self, device: Device, setting: Setting) -> None:  # noqa: ARG002 - the same for every payload
        """Make a channel with a ring of receive buffers."""
        message_class()
        self.device = device
        self.channel = device.channel(OPTIONS)
        self._tensors: dict[int, Packed] = {}

    def offer(self, payload: Payload) -> str:
        """Forget what was received."""
        self._payload = payload
        self._events = Events(self.channel, f"{self.name} {payload.name}")
        self._tensors = {}
        return ""

    def accept(self, text: str) -> None:
        """Nothing to learn."""
        refuse_offer(text)

    def step_operation(self, step: int) -> Operation[None]:
        """Put every message together, take the tensor out of it, and reply to the last."""
        ledger, what = self.device.ledger, f"{self.name} {self._payload.name}"
        for index in range(len(self._payload.tensors)):
            header = yield from self._next(what, index)
            if len(header) != HEADER.size or HEADER.unpack(header)[:2] != (step, index):
                raise ProtocolError(f"{what}: expected the header of tensor {index} in step {step}")
            _, _, nbytes = HEADER.unpack(header)
            pieces: list[bytes] = []
            left = nbytes
            while left > 0:
                piece = yield from self._next(what, (index, left))
                pieces.append(piece)
                left -= len(piece)
            wire = b"".join(pieces)
            if left < 0:
                raise ProtocolError(f"{what}: tensor {index} came with {-left} bytes too many")
            self._tensors[index] = unpack(wire, ledger=ledger)
            # The contract of `Channel.receive`, again.
            ledger.count("receive ring to fragments", self._tensors[index].content.nbytes)
            ledger.count("fragments to message", self._tensors[index].content.nbytes)
        self.channel.send(REPLY.pack(step))
        self._events.check()

    def _next(self, what: str, place: object) -> Operation[bytes]:
        while (message := self._events.message()) is None:
            yield what, place
        return message

    def received(self, index: int) -> Bytes1D:
        """A view of the message's content."""
        if index not in self._tensors:
            raise HarnessError(f"{self.name}: tensor {index} was not received")
        return self._tensors[index].content

    def poison(self) -> None:
        """Drop what was received; every step makes new messages."""
        self._tensors = {}

    def close(self) -> None:
        """Close the channel."""
        self._tensors = {}
        self.channel.close()


def refuse_offer(text: str) -> None:
    """An offer of this transport is empty.

    Raises:
        ProtocolError: the other end is another transport's.
    """
    if text:
        raise ProtocolError("an RPC library publishes no memory, and got an offer of some")
