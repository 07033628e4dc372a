"""`tcp`: a length-prefixed socket, the plainest way to move bytes between processes.

The payload goes from the tensor's own memory into the kernel and from the kernel into memory the receiver allocated
before: no copy in user space, two in the kernel, a system call for every socket buffer.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from engines.rdma.copies import CopyLedger
from engines.rdma.memory import anonymous
from engines.rdma.placement import PeerLost, ProtocolError, extent, lay_out
from engines.rdma.transports.base import POISON

if TYPE_CHECKING:
    import socket

    from engines.rdma.session import Session
    from engines.rdma.tensors import Payload
    from engines.rdma.transports.base import Bytes1D, Sources

PREFIX = struct.Struct("<QQ")
"""Tensor index, bytes."""
ACK = struct.Struct("<Q")
"""Step."""


class TcpSender:
    """Sends tensors down a socket."""

    def __init__(self, session: Session, name: str) -> None:
        self.ledger = CopyLedger()
        self._socket = session.join(name)
        self._ack = memoryview(bytearray(ACK.size))

    def prepare(self, payload: Payload, sources: Sources) -> None:
        """Remember where the tensors lie."""
        self._what = f"tcp {payload.name}"
        self._messages = [(PREFIX.pack(i, s.nbytes), s.data) for i, s in enumerate(sources)]

    def send(self, step: int) -> None:
        """Prefix and payload of every tensor, then wait for the step number to come back."""
        try:
            for prefix, payload in self._messages:
                # One system call for both, so that no segment goes out with the prefix alone.
                sent = self._socket.sendmsg([prefix, payload]) - PREFIX.size
                if sent < len(payload):
                    self._socket.sendall(payload[max(sent, 0) :])
            _fill(self._socket, self._ack)
        except OSError as error:
            raise PeerLost(f"{self._what}: the other rank ended or was silent: {error}") from error
        if ACK.unpack(self._ack)[0] != step:
            raise ProtocolError(f"{self._what}: acknowledged {ACK.unpack(self._ack)[0]} instead of {step}")

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()


class TcpReceiver:
    """Receives into memory it has ready."""

    def __init__(self, session: Session, name: str) -> None:
        self.ledger = CopyLedger()
        self._socket = session.join(name)
        self._prefix = memoryview(bytearray(PREFIX.size))

    def prepare(self, payload: Payload) -> None:
        """Allocate a place for every tensor."""
        self._what = f"tcp {payload.name}"
        slots = lay_out(tensor.nbytes for tensor in payload.tensors)
        memory = anonymous(extent(slots))
        self._places = [memory[slot.offset : slot.offset + slot.nbytes] for slot in slots]

    def receive(self, step: int) -> None:
        """Take every tensor in order and send the step number back."""
        try:
            for index, place in enumerate(self._places):
                _fill(self._socket, self._prefix)
                if PREFIX.unpack(self._prefix) != (index, len(place)):
                    raise ProtocolError(f"{self._what}: unexpected message {PREFIX.unpack(self._prefix)}")
                _fill(self._socket, place)
            self._socket.sendall(ACK.pack(step))
        except OSError as error:
            raise PeerLost(f"{self._what}: the other rank ended or was silent: {error}") from error

    def received(self, index: int) -> Bytes1D:
        """A view of the tensor's place."""
        import numpy as np

        return np.frombuffer(self._places[index], np.uint8)

    def poison(self) -> None:
        """Overwrite every place."""
        for index in range(len(self._places)):
            self.received(index)[:] = POISON

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()


def _fill(source: socket.socket, place: memoryview) -> None:
    """Read exactly `len(place)` bytes."""
    while place:
        count = source.recv_into(place)
        if not count:
            raise ConnectionResetError("connection closed")
        place = place[count:]
