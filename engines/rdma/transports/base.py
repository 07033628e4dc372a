"""What every transport does.

A *step* hands every tensor of the payload to the transport and ends when the sender knows that the receiver has the
last one, in memory a consumer can compute on. Both ends are opened once per trial and prepared once per payload; what
preparing costs (connections, registration, published addresses) is off the critical path in the paper as here.

The transports over a device (`zero-copy`, `copy`, `rpc-over-rdma`, `request-driven`) are made of *ends*: a step of an
end is a polling-asynchronous operation, so that the same code runs in two processes of real ranks (`joined`) and in
one process of simulated ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from engines.rdma.copies import CopyLedger
    from engines.rdma.device import Channel, Device, Region
    from engines.rdma.executor import Operation
    from engines.rdma.placement import Slot
    from engines.rdma.tensors import Payload

    Bytes1D = NDArray[np.uint8]

POISON = 0xA5
"""What receivers overwrite their memory with, so that only a new step can make it right."""


@dataclass(frozen=True)
class Setting:
    """What both ends of a transport are told when they are opened."""

    payloads: tuple[Payload, ...]
    """All that will be moved, so that memory is registered once and is enough for each."""
    placement: str = "static"
    """`static` or `dynamic` (`Spec.placement`)."""
    signal: str = "auto"
    """`auto`, `tail`, `imm` or `debug` (`Spec.signal`)."""

    @property
    def tensors(self) -> int:
        """Most tensors of one payload."""
        return max(len(payload.tensors) for payload in self.payloads)


class Sources(Sequence["Bytes1D"]):
    """A payload's tensors where the producing operators left them, in registered memory if there is any."""

    def __init__(self, views: Sequence[Bytes1D], *, region: Region | None = None, slots: Sequence[Slot] = ()) -> None:
        """Name the tensors' bytes.

        Args:
            views: one array a tensor.
            region: the registered memory in which all of them lie.
            slots: where, each with room for what a static placement writes behind the payload.
        """
        self.views, self.region, self.slots = tuple(views), region, tuple(slots)

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, index: int) -> Bytes1D:  # type: ignore[override]  # one tensor, no slices
        return self.views[index]


class Sender(Protocol):
    """Rank 0's end."""

    ledger: CopyLedger
    """Counts what this end copies; transports over one device share its ledger."""

    def prepare(self, payload: Payload, sources: Sources) -> None:
        """Get ready to send these tensors any number of times.

        Raises:
            HarnessError: the receiver did not publish what is needed.
        """

    def send(self, step: int) -> None:
        """Move every tensor once and wait for the receiver's word; steps of a payload count from 1.

        Raises:
            HarnessError: the receiver is gone, or broke the protocol.
        """

    def close(self) -> None:
        """Give everything back."""


class Receiver(Protocol):
    """Rank 1's end."""

    ledger: CopyLedger

    def prepare(self, payload: Payload) -> None:
        """Get ready to receive these tensors, and publish what the sender needs."""

    def receive(self, step: int) -> None:
        """Wait for every tensor of a step and tell the sender.

        Raises:
            HarnessError: the sender is gone, or broke the protocol.
        """

    def received(self, index: int) -> Bytes1D:
        """The bytes of a tensor as the last step left them."""

    def poison(self) -> None:
        """Spoil what earlier steps left, so that only a new step can make it right."""

    def close(self) -> None:
        """Give everything back."""


class SendingEnd(Protocol):
    """Rank 0's end of a transport over a device; nothing in it waits.

    The two ends exchange `address` and are connected; then for every payload they exchange an `offer` each and
    `accept` the other's; then steps are run as operations.
    """

    device: Device
    channel: Channel

    def offer(self, payload: Payload, sources: Sources) -> str:
        """Get ready for a payload; what the receiver must know."""

    def accept(self, text: str) -> None:
        """Take in the receiver's offer.

        Raises:
            HarnessError: it is malformed, or does not fit.
        """

    def step_operation(self, step: int) -> Operation[None]:
        """Move every tensor once; ends with the receiver's word."""

    def close(self) -> None:
        """Let go of the memory, and close the channel."""


class ReceivingEnd(Protocol):
    """Rank 1's end of a transport over a device."""

    device: Device
    channel: Channel

    def offer(self, payload: Payload) -> str:
        """Get ready for a payload; what the sender must know."""

    def accept(self, text: str) -> None:
        """Take in the sender's offer.

        Raises:
            HarnessError: it is malformed, or does not fit.
        """

    def step_operation(self, step: int) -> Operation[None]:
        """Take in every tensor once, and tell the sender."""

    def received(self, index: int) -> Bytes1D:
        """The bytes of a tensor as the last step left them."""

    def poison(self) -> None:
        """Spoil what earlier steps left."""

    def close(self) -> None:
        """Let go of the memory, and close the channel."""
