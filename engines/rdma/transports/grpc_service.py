"""The receiving end of both gRPC transports: a server that takes tensors by call or by stream.

Tuned, so that the baseline is what a careful user would run: no message-size limit, HTTP/2 frames of 16 MiB (fewer
frame headers and wake-ups), the C core on both ends, an allocator that keeps its memory (`Spec.allocator`). Copies
inside the core and the kernel are not in the ledger.
"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Any

from engines.rdma.placement import PeerLost, ProtocolError
from engines.rdma.transports.base import CopyLedger
from engines.rdma.transports.messages import Packed, message_class, unpack
from harness.api import EnvironmentLacks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from engines.rdma.session import Session
    from engines.rdma.tensors import Payload
    from engines.rdma.transports.base import Bytes1D

SERVICE = "rdma.Tensors"
OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.http2.max_frame_size", 2**24 - 1),
)
WORKERS = 4
LIVENESS_SECONDS = 0.2
DONE = b"\x01"


def load_grpc() -> Any:
    """The grpc module.

    Raises:
        EnvironmentLacks: it is not installed.
    """
    # The core reports an orderly shutdown of the peer on stderr; errors reach us as exceptions.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        import grpc
    except ImportError as error:
        raise EnvironmentLacks(f"the gRPC transports need grpcio: pip install 'harness[rdma]' ({error})") from None
    message_class()
    return grpc


class Inbox:
    """What has arrived, put together from the server's threads."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._step = 0
        self._tensors: dict[int, Packed] = {}
        self._error = ""

    def put(self, tensor: Packed) -> int:
        """Add a tensor; how many its step has by now."""
        with self._changed:
            if tensor.step != self._step:
                self._step = tensor.step
                self._tensors.clear()
            self._tensors[tensor.index] = tensor
            count = len(self._tensors)
            self._changed.notify_all()
            return count

    def wait(self, step: int, count: int, *, alive: Callable[[], bool], timeout: float, what: str) -> None:
        """Wait until `count` tensors of `step` are there.

        Raises:
            ProtocolError: a later step has begun.
            PeerLost: the sender ended, or `timeout` passed.
        """
        deadline = time.monotonic() + timeout
        with self._changed:
            while self._step != step or len(self._tensors) < count:
                if self._step > step:
                    raise ProtocolError(f"{what}: expected step {step}, found {self._step}")
                if time.monotonic() > deadline or not (self._changed.wait(LIVENESS_SECONDS) or alive()):
                    raise PeerLost(f"{what}: the other rank ended or was silent before step {step}")

    def content(self, index: int) -> Bytes1D:
        """The bytes of a tensor of the current step."""
        return self._tensors[index].content

    def clear(self) -> None:
        """Forget everything."""
        with self._changed:
            self._tensors.clear()
            self._step = 0


class GrpcReceiver:
    """A server on rank 1."""

    def __init__(self, session: Session, name: str) -> None:
        from concurrent.futures import ThreadPoolExecutor

        grpc = load_grpc()
        self.ledger = CopyLedger()
        self._session = session
        self._name = name
        self._inbox = Inbox()
        self._count = 0
        handlers = {
            "Put": grpc.unary_unary_rpc_method_handler(self._put),
            "Stream": grpc.stream_stream_rpc_method_handler(self._stream),
        }
        self._server = grpc.server(ThreadPoolExecutor(WORKERS), options=OPTIONS)
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        port = self._server.add_insecure_port(f"{session.bind_address}:0")
        self._server.start()
        session.publish(name, f"{session.bind_address}:{port}")

    def _put(self, wire: bytes, _context: Any) -> bytes:
        self._inbox.put(unpack(wire, ledger=self.ledger))
        return DONE

    def _stream(self, wires: Iterator[bytes], _context: Any) -> Iterator[bytes]:
        for wire in wires:
            if self._inbox.put(unpack(wire, ledger=self.ledger)) == self._count:
                yield DONE

    def prepare(self, payload: Payload) -> None:
        """Expect this payload from now on."""
        self._what = f"{self._name} {payload.name}"
        self._inbox.clear()
        self._count = len(payload.tensors)

    def receive(self, step: int) -> None:
        """Wait for the step's last tensor; the sender learns of each by its reply."""
        session = self._session
        self._inbox.wait(step, self._count, alive=session.peer_alive, timeout=session.timeout, what=self._what)

    def received(self, index: int) -> Bytes1D:
        """A view of the message's content."""
        return self._inbox.content(index)

    def poison(self) -> None:
        """Drop what was received; every step makes new messages."""
        self._inbox.clear()

    def close(self) -> None:
        """Stop the server at once."""
        self._server.stop(grace=None).wait()
        self._inbox.clear()
