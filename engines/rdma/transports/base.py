"""What every transport does.

A *step* hands every tensor of the payload to the transport and ends when the sender knows that the receiver has the
last one, in memory a consumer can compute on. Both ends are opened once per trial and prepared once per payload; what
preparing costs (connections, registration, published addresses) is off the critical path in the paper as here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from engines.rdma.copies import CopyLedger
    from engines.rdma.tensors import Payload

    Bytes1D = NDArray[np.uint8]


class Sender(Protocol):
    """Rank 0's end."""

    ledger: CopyLedger

    def prepare(self, payload: Payload, sources: Sequence[Bytes1D]) -> None:
        """Get ready to send these tensors any number of times; `sources` are their bytes.

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
