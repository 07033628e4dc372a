"""`nixl`, `nixl-tcp`: NIXL (NVIDIA Inference Xfer Library) over UCX, on one host's shared memory or over TCP.

As NIXL's documentation advises: memory is registered and descriptor lists are prepared once for a payload, a transfer
request is made once and posted again for every step, all tensors of a step are one request, the connection is made
before the first transfer, and both sides learn of completion by notifications. One agent a rank, without a progress
thread: it would poll without end and take a processor from whatever else is measured.

`nixl` is NIXL at its best between processes of a host. Left alone it moves nothing by shared memory: its default error
handling wants transports that report a lost peer, UCX's shared-memory ones do so only with `UCX_MM_ERROR_HANDLING`,
and without them messages go over TCP. With it, notifications go through a ring in shared memory and payloads by
cross-memory attach (one copy, by the kernel, from process to process), the only way of UCX's to write into memory that
it did not allocate itself.

A step ends when the sender has (1) NIXL's word that the write is complete, which for UCX means placed at the target,
and (2) a notification of the receiver that it got the write's own notification, which NIXL delivers after the bytes.
"""

from __future__ import annotations

import base64
import binascii
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from engines.rdma.copies import CopyLedger
from engines.rdma.placement import PeerLost, ProtocolError
from engines.rdma.transports.landing import Landing, stretch
from engines.rdma.transports.polling import poll
from harness.api import EnvironmentLacks

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from engines.rdma.session import Session
    from engines.rdma.tensors import Payload
    from engines.rdma.transports.base import Bytes1D, Sources

SETTINGS = {
    "nixl": {"UCX_TLS": "sysv,posix,cma", "UCX_MM_ERROR_HANDLING": "y"},
    "nixl-tcp": {"UCX_TLS": "tcp"},
}
"""What UCX is told, by transport, when an agent is made."""
AT_LOAD = {
    # It reports every step of its initialisation on stdout; errors reach us as exceptions.
    "NIXL_LOG_LEVEL": "ERROR",
    # Not used here, and a process that loaded it ends with a segmentation fault in the wheel's libnl (1.5.1).
    "UCX_MODULES": "^ib",
}
"""Read when the library is loaded; what the user has set stands."""
LOOKS = 16
"""Looks between two times of giving way; looking is what moves the bytes."""
INSTALL = "pip install --no-deps nixl nixl-cu12"
LOCAL = "NIXL_INIT_AGENT"
"""NIXL's name for this side of a transfer."""
WORD = 8


def load_nixl() -> Any:
    """The module with NIXL's agents.

    Raises:
        EnvironmentLacks: NIXL is not installed.
    """
    for name, value in AT_LOAD.items():
        os.environ.setdefault(name, value)
    try:
        from nixl import _api
    except ImportError as error:
        raise EnvironmentLacks(f"transport 'nixl' needs NIXL and its UCX backend: {INSTALL} ({error})") from None
    return _api


@contextmanager
def _environment(settings: dict[str, str]) -> Iterator[None]:
    """UCX reads its settings when an agent is made, and only from the environment; other agents need other ones."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class _End:
    """What both ends share: an agent, what is registered with it, and notifications."""

    def __init__(self, session: Session, name: str) -> None:
        api = load_nixl()
        if name == "nixl" and not session.same_host:
            raise EnvironmentLacks("transport 'nixl' (shared memory) needs both ranks on one host; use 'nixl-tcp'")
        self.ledger = CopyLedger()
        self._session, self._name = session, name
        self._errors: tuple[type[Exception], ...] = tuple(
            kind for kind in vars(api.nixlBind).values() if isinstance(kind, type) and issubclass(kind, Exception)
        )
        with _environment(SETTINGS[name]):
            config = api.nixl_agent_config(enable_prog_thread=False, backends=["UCX"])
            self._agent = api.nixl_agent(f"{name}-{session.rank}", config)
        self._registered: Any = None
        self._peer = ""

    def _register(self, arrays: Sequence[Bytes1D]) -> None:
        """Let the agent know memory; nothing stays registered from the payload before."""
        self._unregister()
        rows = [(*stretch(array), 0, "") for array in arrays]
        self._registered = self._agent.register_memory(rows, "DRAM") if rows else None

    def _unregister(self) -> None:
        if self._registered is not None:
            self._agent.deregister_memory(self._registered)
            self._registered = None

    def _swap(self, rows: Sequence[tuple[int, int, int]], what: str) -> list[tuple[int, int, int]]:
        """Exchange agents' metadata and where the tensors lie; the other's rows."""
        metadata = base64.b64encode(self._agent.get_agent_metadata()).decode()
        other = self._session.swap({"agent": metadata, "rows": rows}, what)
        try:
            blob = base64.b64decode(other["agent"], validate=True)
            found = [(int(address), int(nbytes), 0) for address, nbytes, _ in other["rows"]]
        except (KeyError, TypeError, ValueError, binascii.Error) as error:
            raise ProtocolError(f"{what}: not what an agent publishes: {error!r}") from None
        if self._peer:
            self._agent.remove_remote_agent(self._peer)
        name = self._agent.add_remote_agent(blob)
        self._peer = name.decode() if isinstance(name, bytes) else str(name)
        self._agent.make_connection(self._peer)
        return found

    def _notify(self, step: int) -> None:
        self._agent.send_notif(self._peer, step.to_bytes(WORD, "little"))

    def _notification(self) -> bytes | None:
        """The next notification of the other rank; NIXL gets on while it is asked."""
        for messages in self._agent.get_new_notifs().values():
            if len(messages) > 1:
                raise ProtocolError(f"{self._what}: {len(messages)} notifications where one was due")
            return bytes(messages[0])
        return None

    def _expect(self, step: int, what: str) -> None:
        found = poll(
            self._notification, session=self._session, looks=LOOKS, what=f"{self._what}: {what} of step {step}"
        )
        if found != step.to_bytes(WORD, "little"):
            raise ProtocolError(f"{self._what}: expected step {step}, got {found!r}")

    def close(self) -> None:
        """Unregister, disconnect, end the agent."""
        try:
            self._unregister()
            if self._peer:
                self._agent.remove_remote_agent(self._peer)
        except self._errors:
            # The other rank was first, or is dead: there is nothing left to disconnect from.
            self._peer = ""
        del self._agent


class NixlSender(_End):
    """Writes tensors into the receiver's memory."""

    _handles: tuple[Any, ...] = ()
    _request: Any = None

    def prepare(self, payload: Payload, sources: Sources) -> None:
        """Register the tensors where they are, and make the request that every step posts."""
        self._what = f"{self._name} {payload.name}"
        self._release()
        filled = [source for source in sources if source.nbytes]
        self._register(filled)
        targets = self._swap([], f"the memory for {payload.name}")
        rows = [(*stretch(source), 0) for source in filled]
        if [nbytes for _, nbytes, _ in targets] != [nbytes for _, nbytes, _ in rows]:
            raise ProtocolError(f"{self._what}: the receiver's places are not as long as the tensors")
        if rows:
            here = self._agent.prep_xfer_dlist(LOCAL, rows, "DRAM")
            there = self._agent.prep_xfer_dlist(self._peer, targets, "DRAM")
            every = list(range(len(rows)))
            self._handles = (here, there)
            self._request = self._agent.make_prepped_xfer("WRITE", here, every, there, every)

    def send(self, step: int) -> None:
        """Post the request, see it complete, and wait for the receiver's notification."""
        if self._request is None:
            self._notify(step)
        else:
            self._write(step)
        self._expect(step, "acknowledgement")

    def _write(self, step: int) -> None:
        try:
            state = self._agent.transfer(self._request, step.to_bytes(WORD, "little"))
            if state != "DONE":
                state = poll(self._ended, session=self._session, looks=LOOKS, what=f"{self._what}: step {step}")
        except self._errors as error:
            raise PeerLost(f"{self._what}: step {step}: {error}") from None
        if state != "DONE":
            raise PeerLost(f"{self._what}: step {step} ended in NIXL's state {state}")

    def _ended(self) -> str | None:
        state: str = self._agent.check_xfer_state(self._request)
        return None if state == "PROC" else state

    def _release(self) -> None:
        for handle in (self._request, *self._handles):
            if handle is not None:
                handle.release()
        self._request, self._handles = None, ()

    def close(self) -> None:
        """Release the request first: it refers to registered memory."""
        try:
            self._release()
        except self._errors:
            # A request to a dead peer cannot be cancelled; NIXL keeps it until the agent ends.
            self._request, self._handles = None, ()
        super().close()


class NixlReceiver(_End):
    """Owns the memory, and waits for the notification that comes with the bytes."""

    def prepare(self, payload: Payload) -> None:
        """Map and register a place for every tensor, and say where."""
        self._what = f"{self._name} {payload.name}"
        landing = Landing(payload)
        filled = [place for place in landing.places if place.nbytes]
        self._register(filled)
        self._landing = landing
        self._swap([(*stretch(place), 0) for place in filled], f"the agent that sends {payload.name}")

    def receive(self, step: int) -> None:
        """Wait for the notification and send one back."""
        self._expect(step, "notification")
        self._notify(step)

    def received(self, index: int) -> Bytes1D:
        """A view of the tensor's place."""
        return self._landing.places[index]

    def poison(self) -> None:
        """Overwrite every place."""
        self._landing.poison()
