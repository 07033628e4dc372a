"""`mooncake`: Mooncake's transfer engine over TCP, its transport for hosts without an RDMA adapter.

As its documentation advises: peers find each other by `P2PHANDSHAKE` (no metadata server), memory is registered once
for a payload, connections are kept (`MC_TCP_ENABLE_CONNECTION_POOL`), all tensors of a step are one batch. The engine
moves bytes in threads of its own, so that a rank that waits gives its processor away at every look.

A step is three transfers: the batch, which ends when the receiver's engine has confirmed that the bytes are in place;
the step number into a word that the receiver polls (transfers of one batch may overtake each other, so it cannot be
part of it); and the receiver's step number back into a word of the sender's. The library's own notifications, which
open a connection each, took 0.05 ms longer for 64 B and 64 KiB and 0.05 to 0.2 ms less for 1 MiB, where its threads and
ours compete for two processors.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from engines.rdma.copies import CopyLedger
from engines.rdma.memory import anonymous
from engines.rdma.placement import PeerLost, ProtocolError
from engines.rdma.transports.landing import Landing, stretch
from engines.rdma.transports.polling import poll
from harness.api import EnvironmentLacks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engines.rdma.session import Session
    from engines.rdma.tensors import Payload
    from engines.rdma.transports.base import Bytes1D, Sources

SETTINGS = {
    "MC_FORCE_TCP": "1",
    "MC_TCP_ENABLE_CONNECTION_POOL": "1",
    # Otherwise it reports every step of its initialisation on stderr. One line of no consequence remains.
    "MC_LOG_LEVEL": "ERROR",
}
"""Read by the library when it is loaded, from the environment only; what the user has set stands."""
INSTALL = "pip install mooncake-transfer-engine-non-cuda; apt-get install libibverbs1"
LOOKS = 1
"""Looks between two times of giving way: the engine's own threads do the work."""
WORD = 8


def load_mooncake(bind_address: str) -> Any:
    """The class of transfer engines.

    Raises:
        EnvironmentLacks: the wheel, or the system library it is linked with, is not installed.
    """
    for name, value in {**SETTINGS, "MC_TCP_BIND_ADDRESS": bind_address}.items():
        os.environ.setdefault(name, value)
    try:
        from mooncake.engine import TransferEngine
    except ImportError as error:
        raise EnvironmentLacks(f"transport 'mooncake' needs its transfer engine: {INSTALL} ({error})") from None
    return TransferEngine


class _End:
    """What both ends share: an engine, what is registered with it, and two words of sequence."""

    def __init__(self, session: Session, name: str) -> None:
        import numpy as np

        self.ledger = CopyLedger()
        self._session, self._name, self._what = session, name, name
        self._engine = load_mooncake(session.bind_address)()
        self._must(self._engine.initialize(session.bind_address, "P2PHANDSHAKE", "tcp", ""), "initialisation")
        self._registered: list[int] = []
        # One word for the other rank to write, one to write it from.
        memory = anonymous(2 * WORD)
        self._words = memory.cast("Q")
        address, nbytes = stretch(np.frombuffer(memory, np.uint8))
        self._inbox, self._outbox = address, address + WORD
        self._must(self._engine.register_memory(address, nbytes), "registration of the sequence words")

    def _must(self, code: int, what: str) -> None:
        if code:
            raise EnvironmentLacks(f"transport 'mooncake': {what} failed with code {code}")

    def _register(self, rows: Sequence[tuple[int, int]]) -> None:
        """Let the engine know memory; nothing stays registered from the payload before."""
        self._unregister()
        if rows:
            addresses, sizes = [list(column) for column in zip(*rows, strict=True)]
            self._must(self._engine.batch_register_memory(addresses, sizes), "registration of the tensors")
            self._registered = addresses

    def _unregister(self) -> None:
        if self._registered:
            self._engine.batch_unregister_memory(self._registered)
            self._registered = []

    def _swap(self, rows: Sequence[tuple[int, int]], what: str) -> list[tuple[int, int]]:
        """Exchange where the engines listen and where the tensors and the words lie; the other's rows."""
        self._words[0] = 0
        mine = {"engine": f"{self._session.bind_address}:{self._engine.get_rpc_port()}", "word": self._inbox}
        other = self._session.swap({**mine, "rows": rows}, what)
        try:
            self._peer, self._far_word = str(other["engine"]), int(other["word"])
            return [(int(address), int(nbytes)) for address, nbytes in other["rows"]]
        except (KeyError, TypeError, ValueError) as error:
            raise ProtocolError(f"{what}: not what an engine publishes: {error!r}") from None

    def _say(self, step: int) -> None:
        """Write the step number into the other rank's word."""
        self._words[1] = step
        self._moved(self._engine.transfer_sync_write(self._peer, self._outbox, self._far_word, WORD), step)

    def _moved(self, code: int, step: int) -> None:
        if code:
            raise PeerLost(f"{self._what}: step {step}: a transfer failed with code {code}")

    def _expect(self, step: int) -> None:
        def look() -> int | None:
            found = self._words[0]
            return found if found >= step else None

        found = poll(look, session=self._session, looks=LOOKS, what=f"{self._what}: step {step}")
        if found != step:
            raise ProtocolError(f"{self._what}: expected step {step}, found {found}")

    def close(self) -> None:
        """Unregister, and end the engine with its threads."""
        self._unregister()
        self._engine.unregister_memory(self._inbox)
        del self._engine


class MooncakeSender(_End):
    """Writes tensors into the receiver's memory."""

    def prepare(self, payload: Payload, sources: Sources) -> None:
        """Register the tensors where they are."""
        self._what = f"{self._name} {payload.name}"
        rows = [stretch(source) for source in sources if source.nbytes]
        self._register(rows)
        targets = self._swap([], f"the memory for {payload.name}")
        if [nbytes for _, nbytes in targets] != [nbytes for _, nbytes in rows]:
            raise ProtocolError(f"{self._what}: the receiver's places are not as long as the tensors")
        self._from = [address for address, _ in rows]
        self._to = [address for address, _ in targets]
        self._sizes = [nbytes for _, nbytes in rows]

    def send(self, step: int) -> None:
        """The tensors, then the step number, then wait for it to come back."""
        if self._sizes:
            self._moved(self._engine.batch_transfer_sync_write(self._peer, self._from, self._to, self._sizes), step)
        self._say(step)
        self._expect(step)


class MooncakeReceiver(_End):
    """Owns the memory, and polls the step number."""

    def prepare(self, payload: Payload) -> None:
        """Map and register a place for every tensor, and say where."""
        self._what = f"{self._name} {payload.name}"
        landing = Landing(payload)
        rows = [stretch(place) for place in landing.places if place.nbytes]
        self._register(rows)
        self._landing = landing
        self._swap(rows, f"the engine that sends {payload.name}")

    def receive(self, step: int) -> None:
        """Wait for the step number and write it back."""
        self._expect(step)
        self._say(step)

    def received(self, index: int) -> Bytes1D:
        """A view of the tensor's place."""
        return self._landing.places[index]

    def poison(self) -> None:
        """Overwrite every place."""
        self._landing.poison()
