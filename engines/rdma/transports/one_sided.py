"""`shm`: the paper's static placement over one-sided writes.

The receiver allocates a slot per tensor in its registered arena and publishes one descriptor. The sender's tensors
live in *its* registered arena, in the same layout with room for the sequence, as the producer would leave them there;
each step is one write per tensor, straight from where it was produced to where it is consumed. The acknowledgement is
a one-sided write of the step number into a word of the sender's.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from engines.rdma.device import WORD, Access, Descriptor, Status
from engines.rdma.placement import ALIGN, PeerLost, extent, lay_out, wait_for
from engines.rdma.providers import open_device
from harness.api import EnvironmentLacks, HarnessError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engines.rdma.device import Channel, Region
    from engines.rdma.session import Session
    from engines.rdma.tensors import Payload
    from engines.rdma.transports.base import Bytes1D

POISON = 0xA5
CONTROL_SECONDS = 0.0002
"""Pause between two looks into the mailbox, outside every timed stretch."""


def registered_bytes(payload: Payload) -> int:
    """Arena that a payload needs on either side: its slots and the acknowledgement word."""
    return extent(lay_out(tensor.nbytes for tensor in payload.tensors)) + 4 * ALIGN


class _End:
    """What both ends share: a device, a channel, and a one-word region for sequences."""

    def __init__(self, session: Session, largest: int) -> None:
        if not session.same_host:
            raise EnvironmentLacks("transport 'shm' needs both ranks on one host")
        self._session = session
        self._device = open_device("shm", largest)
        self.ledger = self._device.ledger
        self._channel: Channel = self._device.channel()
        session.publish(f"shm-address{session.rank}", self._channel.address())
        self._channel.connect(session.lookup(f"shm-address{1 - session.rank}"))

    def _alive(self) -> bool:
        return self._channel.alive()

    def _descriptor(self, what: str) -> Descriptor:
        """The next descriptor in this rank's mailbox."""
        deadline = time.monotonic() + self._session.timeout
        while (message := self._channel.receive()) is None:
            if time.monotonic() > deadline or not self._channel.alive():
                raise PeerLost(f"shm: the other rank did not describe {what}")
            time.sleep(CONTROL_SECONDS)
        return Descriptor.from_json(message.decode())

    def _send(self, region: Region) -> None:
        self._channel.send(self._device.describe(region).to_json().encode())
        self._drain()

    def _drain(self) -> None:
        """Raise for the first request that failed."""
        while done := self._channel.poll():
            for completion in done:
                if completion.status is Status.RETRY_EXCEEDED:
                    raise PeerLost(f"shm: the other rank ended during a {completion.operation}")
                if completion.status is not Status.SUCCESS:
                    raise HarnessError(f"shm: {completion.operation} of {completion.nbytes} B: {completion.status}")

    def _release(self) -> None:
        """Let go of views into the memory."""

    def close(self) -> None:
        """Unmap both segments; the kernel frees them."""
        self._release()
        self._channel.close()
        self._device.close()


class OneSidedSender(_End):
    """Writes tensors into the receiver's memory."""

    _words: memoryview | None = None

    def source_memory(self, payload: Payload) -> list[Bytes1D]:
        """Where the producer should leave the payload's tensors, so that they need not be copied to be sent."""
        import numpy as np

        self._release()
        self._device.reset()
        self._slots = lay_out(tensor.nbytes for tensor in payload.tensors)
        self._source = self._device.allocate(extent(self._slots), access=Access.LOCAL_WRITE)
        self._ack = self._device.allocate(WORD, access=Access.REMOTE_WRITE | Access.LOCAL_WRITE)
        self._ack.view[:] = bytes(WORD)
        self._words = self._source.view.cast("Q")
        self._ack_words = self._ack.view.cast("Q")
        whole = np.frombuffer(self._source.view, np.uint8)
        return [whole[slot.offset : slot.offset + slot.nbytes] for slot in self._slots]

    def prepare(self, payload: Payload, sources: Sequence[Bytes1D]) -> None:
        """Exchange descriptors; the tensors must lie in `source_memory`."""
        for slot, source in zip(self._slots, sources, strict=True):
            if source.base is None or source.nbytes != slot.nbytes:
                raise HarnessError(f"shm: {payload.name}: tensors must be produced in the registered arena")
        self._send(self._ack)
        self._target = self._descriptor(f"the slots of {payload.name}")

    def send(self, step: int) -> None:
        """One write per tensor, sequence word last; then poll the acknowledgement."""
        write, words = self._channel.write, self._words
        assert words is not None
        source, target = self._source, self._target
        for slot in self._slots:
            words[slot.tail // WORD] = step
            write(source, target, offset=slot.offset, at=slot.offset, nbytes=slot.span, signaled=False)
        self._drain()
        wait_for(self._ack_words, 0, step, alive=self._alive, timeout=self._session.timeout, what="shm acknowledgement")

    def _release(self) -> None:
        if self._words is not None:
            self._words.release()
            self._ack_words.release()
            self._words = None


class OneSidedReceiver(_End):
    """Owns the slots and polls their tails."""

    _words: memoryview | None = None

    def prepare(self, payload: Payload) -> None:
        """Allocate the slots, clear their tails, publish them."""
        self._release()
        self._device.reset()
        self._slots = lay_out(tensor.nbytes for tensor in payload.tensors)
        access = Access.LOCAL_WRITE | Access.REMOTE_WRITE
        self._region = self._device.allocate(extent(self._slots), access=access)
        self._ack = self._device.allocate(WORD, access=Access.LOCAL_WRITE)
        self._words = self._region.view.cast("Q")
        self._ack_words = self._ack.view.cast("Q")
        for slot in self._slots:
            self._words[slot.tail // WORD] = 0
        self._names = [tensor.name for tensor in payload.tensors]
        self._send(self._region)
        self._target = self._descriptor("its acknowledgement word")

    def receive(self, step: int) -> None:
        """Poll every tail, then write the step number back."""
        assert self._words is not None
        for slot, name in zip(self._slots, self._names, strict=True):
            wait_for(
                self._words,
                slot.tail // WORD,
                step,
                alive=self._alive,
                timeout=self._session.timeout,
                what=f"shm {name}",
            )
        self._ack_words[0] = step
        self._channel.write(self._ack, self._target, offset=0, at=0, nbytes=WORD, signaled=False)
        self._drain()

    def received(self, index: int) -> Bytes1D:
        """A view of the slot: what the consumer computes on."""
        import numpy as np

        slot = self._slots[index]
        return np.frombuffer(self._region.view, np.uint8)[slot.offset : slot.offset + slot.nbytes]

    def poison(self) -> None:
        """Overwrite the payloads, not the tails."""
        for index in range(len(self._slots)):
            self.received(index)[:] = POISON

    def _release(self) -> None:
        if self._words is not None:
            self._words.release()
            self._ack_words.release()
            self._words = None
