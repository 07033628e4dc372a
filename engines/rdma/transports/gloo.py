"""`gloo`: `torch.distributed` send and receive, what a PyTorch user has without installing anything.

Tuned as far as it goes: tensors share the producers' and the consumer's memory (no copy in user space), all tensors of
a step are under way at once, the acknowledgement's receive is posted before anything is sent, the interface is the
loopback one on a single host. Posting the receives of a step before the one that precedes it has ended was tried and
changed nothing (gloo announces every send with a message of its own and waits for the matching receive).

Every message of gloo's is handed from the calling thread to a thread that waits in `epoll`, and back, on both ends. On
idle processors that is about 0.1 ms a round trip. Where all processors are busy - a polling thread of another library
in either process is enough - each hand-over may wait for the scheduler's next tick, 4 ms at 250 Hz, whatever the size.

A step ends when the sender has received the step number back, which the receiver sends once every receive is complete.
"""

from __future__ import annotations

import json
import os
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from engines.rdma.copies import CopyLedger
from engines.rdma.placement import PeerLost, ProtocolError
from engines.rdma.session import LOOPBACK
from engines.rdma.transports.landing import Landing
from harness.api import EnvironmentLacks

if TYPE_CHECKING:
    from engines.rdma.session import Session
    from engines.rdma.tensors import Payload
    from engines.rdma.transports.base import Bytes1D, Sources


def load_distributed() -> Any:
    """`torch.distributed`.

    Raises:
        EnvironmentLacks: torch is not installed, or was built without gloo.
    """
    try:
        import torch.distributed as dist
    except ImportError as error:
        raise EnvironmentLacks(f"transport 'gloo' needs PyTorch: pip install 'harness[models]' ({error})") from None
    if not (dist.is_available() and dist.is_gloo_available()):
        raise EnvironmentLacks("transport 'gloo' needs a PyTorch built with gloo: pip install 'harness[models]'")
    return dist


class _End:
    """What both ends share: a process group of the two ranks, and a tensor for the step number."""

    def __init__(self, session: Session, name: str) -> None:
        self._dist = load_distributed()
        import torch

        self.ledger = CopyLedger()
        self._name, self._timeout = name, timedelta(seconds=session.timeout)
        if session.bind_address == LOOPBACK:
            # Otherwise gloo takes the interface of the host's own name, if that resolves at all.
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        store = self._store(session)
        self._dist.init_process_group("gloo", store=store, rank=session.rank, world_size=2, timeout=self._timeout)
        self._peer = 1 - session.rank
        self._word = torch.zeros(1, dtype=torch.int64)

    def _store(self, session: Session) -> Any:
        if session.rank == 1:
            store = self._dist.TCPStore(
                session.bind_address, 0, 2, is_master=True, wait_for_workers=False, timeout=self._timeout
            )
            session.publish(self._name, json.dumps([session.bind_address, store.port]))
            return store
        host, port = json.loads(session.lookup(self._name))
        return self._dist.TCPStore(host, port, 2, is_master=False, timeout=self._timeout)

    def _finish(self, work: Any) -> None:
        """Wait for a send or a receive.

        Raises:
            PeerLost: gloo lost the connection, or the timeout passed.
        """
        try:
            work.wait()
        except RuntimeError as error:
            raise self._lost(error) from None

    def _lost(self, error: RuntimeError) -> PeerLost:
        # The first sentence says what happened; the rest is advice for another situation.
        return PeerLost(f"{self._what}: {str(error).split('. ')[0]}")

    def _send(self, tensor: Any, tag: int = 0) -> Any:
        return self._start(self._dist.isend, tensor, tag)

    def _receive(self, tensor: Any, tag: int = 0) -> Any:
        return self._start(self._dist.irecv, tensor, tag)

    def _start(self, operation: Any, tensor: Any, tag: int) -> Any:
        try:
            return operation(tensor, self._peer, tag=tag)
        except RuntimeError as error:
            raise self._lost(error) from None

    def close(self) -> None:
        """Leave the process group."""
        self._dist.destroy_process_group()


class GlooSender(_End):
    """Sends tensors from where they were produced."""

    def prepare(self, payload: Payload, sources: Sources) -> None:
        """Make torch tensors of the sources, in place."""
        import torch

        self._what = f"{self._name} {payload.name}"
        self._tensors = [(tag, torch.from_numpy(s)) for tag, s in enumerate(sources, start=1) if s.nbytes]

    def send(self, step: int) -> None:
        """Start all sends, and wait for the step number to come back."""
        acknowledged = self._receive(self._word)
        sends = [self._send(tensor, tag) for tag, tensor in self._tensors]
        if not sends:
            self._finish(self._send(self._word.new_full((1,), step), tag=1))
        for work in sends:
            self._finish(work)
        self._finish(acknowledged)
        if int(self._word) != step:
            raise ProtocolError(f"{self._what}: acknowledged {int(self._word)} instead of {step}")


class GlooReceiver(_End):
    """Receives into memory it has ready."""

    def prepare(self, payload: Payload) -> None:
        """Map a place for every tensor."""
        import torch

        self._what = f"{self._name} {payload.name}"
        self._landing = Landing(payload)
        self._tensors = [(tag, torch.from_numpy(p)) for tag, p in enumerate(self._landing.places, start=1) if p.nbytes]

    def receive(self, step: int) -> None:
        """Start all receives, wait for them, send the step number back."""
        receives = [self._receive(tensor, tag) for tag, tensor in self._tensors]
        if not receives:
            receives = [self._receive(self._word, tag=1)]
        for work in receives:
            self._finish(work)
        self._word[0] = step
        self._finish(self._send(self._word))

    def received(self, index: int) -> Bytes1D:
        """A view of the tensor's place."""
        return self._landing.places[index]

    def poison(self) -> None:
        """Overwrite every place."""
        self._landing.poison()
