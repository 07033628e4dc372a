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

from engines.rdma.copies import CopyLedger
from engines.rdma.placement import PeerLost
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
    """What has arrived, put together by the server's threads.

    The reply to a step's last tensor is the acknowledgement, so a fast sender may begin the next step before the
    receiving rank has looked; what counts is the last step that is whole.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.expect(0)

    def expect(self, count: int) -> None:
        """Forget everything; steps have `count` tensors from now on."""
        with self._changed:
            self._count = count
            self._step = self._whole = 0
            self._tensors: dict[int, Packed] = {}

    def put(self, tensor: Packed) -> bool:
        """Add a tensor; whether its step is whole now."""
        with self._changed:
            if tensor.step != self._step:
                self._step = tensor.step
                self._tensors = {}
            self._tensors[tensor.index] = tensor
            if len(self._tensors) < self._count:
                return False
            self._whole = tensor.step
            self._changed.notify_all()
            return True

    def wait(self, step: int, *, alive: Callable[[], bool], timeout: float, what: str) -> None:
        """Wait until `step` is whole.

        Raises:
            PeerLost: the sender ended, or `timeout` passed.
        """
        deadline = time.monotonic() + timeout
        with self._changed:
            while self._whole < step:
                woken = self._changed.wait(LIVENESS_SECONDS)
                if time.monotonic() > deadline or not (woken or alive()):
                    raise PeerLost(f"{what}: the other rank ended or was silent before step {step}")

    def content(self, index: int) -> Bytes1D:
        """The bytes of a tensor of the current step."""
        return self._tensors[index].content

    def spoil(self) -> None:
        """Drop the tensors; the next step brings its own."""
        with self._changed:
            self._tensors = {}


class GrpcReceiver:
    """A server on rank 1."""

    def __init__(self, session: Session, name: str) -> None:
        from concurrent.futures import ThreadPoolExecutor

        grpc = load_grpc()
        self.ledger = CopyLedger()
        self._session = session
        self._name = name
        self._inbox = Inbox()
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
            if self._inbox.put(unpack(wire, ledger=self.ledger)):
                yield DONE

    def prepare(self, payload: Payload) -> None:
        """Expect this payload from now on."""
        self._what = f"{self._name} {payload.name}"
        self._inbox.expect(len(payload.tensors))

    def receive(self, step: int) -> None:
        """Wait for the step's last tensor; the sender learns of each by its reply."""
        session = self._session
        self._inbox.wait(step, alive=session.peer_alive, timeout=session.timeout, what=self._what)

    def received(self, index: int) -> Bytes1D:
        """A view of the message's content."""
        return self._inbox.content(index)

    def poison(self) -> None:
        """Drop what was received; every step makes new messages."""
        self._inbox.spoil()

    def close(self) -> None:
        """Stop the server at once."""
        self._server.stop(grace=None).wait()
        self._inbox.expect(0)
