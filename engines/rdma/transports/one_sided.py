"""What `zero-copy` and `copy` share: tensors written or announced one by one, and a word back.

Static placement: one write a tensor, straight from the sender's registered memory to where it is consumed. Dynamic
placement: one announcement a tensor, and the receiver reads it. The two transports differ in where the sender's
registered memory gets the tensor from.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from engines.rdma.arena import Arena
from engines.rdma.device import WORD, Access, ChannelOptions, Signal
from engines.rdma.events import Events
from engines.rdma.executor import together
from engines.rdma.metadata import DynamicReceiver, DynamicSender, blocks_bytes
from engines.rdma.placement import ALIGN, StaticReceiver, StaticSender, choose_signal, extent, lay_out
from engines.rdma.transports.base import POISON
from harness.api import HarnessError

if TYPE_CHECKING:
    from engines.rdma.device import Device, Region
    from engines.rdma.executor import Operation
    from engines.rdma.placement import Slot
    from engines.rdma.tensors import Payload
    from engines.rdma.transports.base import Bytes1D, Setting, Sources


def landing_bytes(setting: Setting) -> int:
    """Registered bytes in which the largest payload fits, slots and checks included."""
    return max(extent(_slots(payload, "debug")) for payload in setting.payloads) + ALIGN


def small_bytes(setting: Setting) -> int:
    """Registered bytes for release words and metadata blocks."""
    return setting.tensors * WORD + blocks_bytes(setting.tensors) + 2 * ALIGN


def _slots(payload: Payload, signal: str) -> tuple[Slot, ...]:
    return lay_out((tensor.nbytes for tensor in payload.tensors), Signal(signal))


def options(setting: Setting) -> ChannelOptions:
    """A channel on which all of a step's requests, and their immediates, may be under way."""
    return ChannelOptions(depth=max(128, 2 * setting.tensors))


class _End:
    """What both ends are: a channel, and edges that are laid out anew for every payload."""

    name: str
    _edges: StaticSender | DynamicSender | StaticReceiver | DynamicReceiver | None = None

    def __init__(self, device: Device, setting: Setting) -> None:
        self.device, self._setting = device, setting
        self.channel = device.channel(options(setting))
        self._signal = choose_signal(setting.signal, device.traits)

    def accept(self, text: str) -> None:
        """Take in the other end's offer."""
        assert self._edges is not None
        self._edges.accept(text)

    def _release(self) -> None:
        if self._edges is not None:
            self._edges.close()
            self._edges = None

    def close(self) -> None:
        """Let go of the memory, and close the channel."""
        self._release()
        self.channel.close()


class OneSidedSender(_End, ABC):
    """Rank 0's end."""

    _edges: StaticSender | DynamicSender | None = None

    def __init__(self, device: Device, setting: Setting) -> None:
        """Register what is needed beside the tensors themselves, and make a channel."""
        super().__init__(device, setting)
        self._words = device.allocate(setting.tensors * WORD, access=Access.LOCAL_WRITE | Access.REMOTE_WRITE)
        if setting.placement == "dynamic":
            self._blocks = device.allocate(blocks_bytes(setting.tensors), access=Access.LOCAL_WRITE)

    def offer(self, payload: Payload, sources: Sources) -> str:
        """Lay out the payload; what the receiver must know."""
        self._release()
        self._payload, self._sources = payload, sources
        self._slots = _slots(payload, self._signal)
        region, names = self._region(payload), [f"{self.name} {tensor.name}" for tensor in payload.tensors]
        self._events = Events(self.channel, f"{self.name} {payload.name}")
        if self._setting.placement == "dynamic":
            self._edges = DynamicSender(
                self.device, self.channel, self._events,
                source=region, blocks=self._blocks, words=self._words, names=names,
            )  # fmt: skip
        else:
            self._edges = StaticSender(
                self.device, self.channel, self._events,
                source=region, word=self._words, slots=self._slots, names=names,
            )  # fmt: skip
        return self._edges.offer()

    def step_operation(self, step: int) -> Operation[None]:
        """Every tensor once, and the wait for its release."""
        if isinstance(self._edges, DynamicSender):
            return self._announce(self._edges, step)
        assert self._edges is not None
        return self._write(self._edges, step)

    def _write(self, edges: StaticSender, step: int) -> Operation[None]:
        yield from edges.credit(step)
        for index in range(len(self._slots)):
            self._stage(index)
            edges.post(index, step)
        self._events.check()
        yield from edges.until_released(step)

    def _announce(self, edges: DynamicSender, step: int) -> Operation[None]:
        for index, (tensor, slot) in enumerate(zip(self._payload.tensors, self._slots, strict=True)):
            yield from edges.until_released(index, step - 1)
            self._stage(index)
            edges.post(index, step, tensor, slot.offset)
        self._events.check()
        for index in range(len(self._slots)):
            yield from edges.until_released(index, step)

    @abstractmethod
    def _region(self, payload: Payload) -> Region:
        """The registered memory from which the payload's tensors go out, laid out as `_slots`."""

    @abstractmethod
    def _stage(self, index: int) -> None:
        """Bring a tensor into that memory."""


class OneSidedReceiver(_End):
    """Rank 1's end."""

    _edges: StaticReceiver | DynamicReceiver | None = None

    def __init__(self, device: Device, setting: Setting) -> None:
        """Register a landing place for the largest payload, and make a channel."""
        super().__init__(device, setting)
        self._landing = device.allocate(
            landing_bytes(setting), access=Access.LOCAL_WRITE | Access.REMOTE_WRITE, align=ALIGN
        )
        self._words = device.allocate(setting.tensors * WORD, access=Access.LOCAL_WRITE)
        if setting.placement == "dynamic":
            self._blocks = device.allocate(
                blocks_bytes(setting.tensors), access=Access.LOCAL_WRITE | Access.REMOTE_WRITE
            )

    def offer(self, payload: Payload) -> str:
        """Place the payload; what the sender must know."""
        self._release()
        names = [f"{self.name} {tensor.name}" for tensor in payload.tensors]
        self._count = len(names)
        self._events = Events(self.channel, f"{self.name} {payload.name}")
        if self._setting.placement == "dynamic":
            self._edges = DynamicReceiver(
                self.device, self.channel, self._events,
                region=self._landing, arena=Arena(0, self._landing.nbytes),
                blocks=self._blocks, words=self._words, names=names,
            )  # fmt: skip
        else:
            self._edges = StaticReceiver(
                self.device, self.channel, self._events,
                region=self._landing, word=self._words, slots=_slots(payload, self._signal), names=names,
            )  # fmt: skip
        return self._edges.offer()

    def step_operation(self, step: int) -> Operation[None]:
        """Wait for every tensor, in the order they are sent, and release them."""
        if isinstance(self._edges, DynamicReceiver):
            return self._fetch(self._edges, step)
        assert self._edges is not None
        return self._wait(self._edges, step)

    def _wait(self, edges: StaticReceiver, step: int) -> Operation[None]:
        for index in range(self._count):
            yield from edges.receive(index, step)
        edges.release(step)

    def _fetch(self, edges: DynamicReceiver, step: int) -> Operation[None]:
        # Announcements come in order, but a tensor must not wait for the payload of the one before.
        return together(self._fetch_one(edges, index, step) for index in range(self._count))

    def _fetch_one(self, edges: DynamicReceiver, index: int, step: int) -> Operation[None]:
        yield from edges.fetch(index, step)
        edges.release(index, step)

    def received(self, index: int) -> Bytes1D:
        """A view of where the tensor lies: what the consumer computes on."""
        import numpy as np

        if self._edges is None:
            raise HarnessError(f"{self.name}: nothing was received yet")
        return np.frombuffer(self._edges.tensor(index), np.uint8)

    def poison(self) -> None:
        """Overwrite the payloads, not what vouches for them."""
        if isinstance(self._edges, StaticReceiver):
            for index in range(self._count):
                self.received(index)[:] = POISON
        else:
            self._landing.view[:] = bytes([POISON]) * self._landing.nbytes
