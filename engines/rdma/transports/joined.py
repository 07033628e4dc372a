"""Ends of two processes joined over the session: what makes a `Sender` of a `SendingEnd`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engines.rdma.executor import drive
from engines.rdma.placement import ProtocolError

if TYPE_CHECKING:
    from engines.rdma.copies import CopyLedger
    from engines.rdma.executor import Operation
    from engines.rdma.session import Session
    from engines.rdma.tensors import Payload
    from engines.rdma.transports.base import Bytes1D, ReceivingEnd, SendingEnd, Sources


class _Joined:
    """Exchanges addresses and offers over the control connection, and drives operations with its liveness."""

    def __init__(self, session: Session, end: SendingEnd | ReceivingEnd) -> None:
        self._session, self._channel, self._device = session, end.channel, end.device
        self.ledger: CopyLedger = end.device.ledger
        self._channel.connect(self._swap(self._channel.address(), "the address of its channel"))

    def _swap(self, text: str, what: str) -> str:
        """Exchange texts; what comes is checked by whoever reads it.

        Raises:
            ProtocolError: something else than a text came.
        """
        other = self._session.swap(text, what)
        if not isinstance(other, str):
            raise ProtocolError(f"rank {1 - self._session.rank} sent no text ({what})")
        return other

    def _drive(self, operation: Operation[None]) -> None:
        drive(operation, self._device, alive=self._alive, timeout=self._session.timeout)

    def _alive(self) -> bool:
        return self._channel.alive() and self._session.peer_alive()


class JoinedSender(_Joined):
    """Rank 0."""

    def __init__(self, session: Session, end: SendingEnd) -> None:
        """Connect `end` with the other rank's."""
        super().__init__(session, end)
        self._end = end

    def prepare(self, payload: Payload, sources: Sources) -> None:
        """Exchange offers."""
        self._end.accept(self._swap(self._end.offer(payload, sources), f"its offer for {payload.name}"))

    def send(self, step: int) -> None:
        """Drive one step."""
        self._drive(self._end.step_operation(step))

    def close(self) -> None:
        """Close the end."""
        self._end.close()


class JoinedReceiver(_Joined):
    """Rank 1."""

    def __init__(self, session: Session, end: ReceivingEnd) -> None:
        """Connect `end` with the other rank's."""
        super().__init__(session, end)
        self._end = end

    def prepare(self, payload: Payload) -> None:
        """Exchange offers."""
        self._end.accept(self._swap(self._end.offer(payload), f"its offer for {payload.name}"))

    def receive(self, step: int) -> None:
        """Drive one step."""
        self._drive(self._end.step_operation(step))

    def received(self, index: int) -> Bytes1D:
        """As the end says."""
        return self._end.received(index)

    def poison(self) -> None:
        """Spoil the end's memory."""
        self._end.poison()

    def close(self) -> None:
        """Close the end."""
        self._end.close()
