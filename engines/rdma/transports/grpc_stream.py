"""`grpc-stream`: the same messages over one streaming call that stays open for the whole trial.

No call is set up per tensor, and packing one overlaps sending the one before: what gRPC can do at best.
"""

from __future__ import annotations

import queue
import threading
import time
from typing import TYPE_CHECKING

from engines.rdma.copies import CopyLedger
from engines.rdma.placement import PeerLost
from engines.rdma.transports.grpc_service import OPTIONS, SERVICE, load_grpc
from engines.rdma.transports.messages import pack

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engines.rdma.session import Session
    from engines.rdma.tensors import Payload
    from engines.rdma.transports.base import Sources

WATCH_SECONDS = 0.5


class StreamSender:
    """A client on rank 0 with one open stream."""

    def __init__(self, session: Session, name: str) -> None:
        self._grpc = load_grpc()
        self.ledger = CopyLedger()
        self._steps: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._channel = self._grpc.insecure_channel(session.lookup(name), options=OPTIONS)
        self._timeout = session.timeout
        self._replies = self._channel.stream_stream(f"/{SERVICE}/Stream")(self._messages())
        self._deadline = float("inf")
        self._closed = threading.Event()
        threading.Thread(target=self._watch, name="rdma-stream-watch", daemon=True).start()

    def prepare(self, payload: Payload, sources: Sources) -> None:
        """Remember where the tensors lie."""
        self._payload, self._sources = payload, sources

    def _messages(self) -> Iterator[bytes]:
        """Runs in gRPC's own thread, one message ahead of the wire."""
        while step := self._steps.get():
            for index, (tensor, source) in enumerate(zip(self._payload.tensors, self._sources, strict=True)):
                yield pack(tensor, source, step=step, index=index, ledger=self.ledger)

    def _watch(self) -> None:
        """Cancel the stream when a step takes too long: gRPC bounds a stream's whole life, not one wait on it."""
        while not self._closed.wait(WATCH_SECONDS):
            if time.monotonic() > self._deadline:
                self._replies.cancel()

    def send(self, step: int) -> None:
        """Let the stream's thread send the step; one reply comes when the last tensor was unpacked."""
        self._deadline = time.monotonic() + self._timeout
        self._steps.put(step)
        try:
            next(self._replies)
            self._deadline = float("inf")
        except (self._grpc.RpcError, StopIteration) as error:
            reason = f"{error.code().name}: {error.details()}" if isinstance(error, self._grpc.RpcError) else "closed"
            raise PeerLost(f"grpc-stream {self._payload.name}: {reason}") from None

    def close(self) -> None:
        """End the stream and close the channel."""
        self._closed.set()
        self._steps.put(0)
        self._replies.cancel()
        self._channel.close()
