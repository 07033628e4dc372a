"""Messages of any length between two ranks: a slot through which bytes pass, piece by piece.

The static placement of `placement`, with one tensor that is not known before: its bytes are copied into the sender's
slot, written into the receiver's, and copied out. For messages that nobody announced; tensors of a graph have slots of
their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch

from engines.rdma.device import WORD, Access
from engines.rdma.events import Events
from engines.rdma.placement import ALIGN, StaticReceiver, StaticSender, choose_signal, extent, lay_out

if TYPE_CHECKING:
    from torch import Tensor

    from engines.rdma.device import Device
    from engines.rdma.executor import Operation
    from engines.rdma.training.edges import Link

SLOT = 1 << 20
"""Bytes of a message that are under way at a time."""


class Stream:
    """One direction between two ranks."""

    CAPACITY: ClassVar[int] = SLOT + 8 * ALIGN
    """Bytes of arena that one side needs."""

    def __init__(self, device: Device, link: Link, what: str) -> None:
        self._sending, self._step = link.sending, 0
        self.channel = device.channel()
        events = Events(self.channel, what)
        slots = lay_out([SLOT], choose_signal("auto", device.traits))
        access = Access.LOCAL_WRITE | Access.REMOTE_WRITE
        region = device.allocate(extent(slots), access=access, align=ALIGN)
        word = device.allocate(WORD, access=access)
        options: dict[str, Any] = {"word": word, "slots": slots, "names": [what]}
        self._end: Any = (
            StaticSender(device, self.channel, events, source=region, **options)
            if link.sending
            else StaticReceiver(device, self.channel, events, region=region, **options)
        )
        self._slot = torch.frombuffer(region.view, dtype=torch.uint8, count=SLOT)
        self._link, self._ledger = link, device.ledger

    def connect(self) -> Operation[None]:
        """Meet the other side."""
        self.channel.connect((yield from self._link.swap("address", self.channel.address())))
        self._end.accept((yield from self._link.swap("offer", self._end.offer())))

    def move(self, content: Tensor) -> Operation[None]:
        """Send, or receive into, `content` (uint8, one dimension)."""
        for part in content.split(SLOT):
            self._step += 1
            self._ledger.count("message slot", part.numel())
            if self._sending:
                yield from self._end.credit(self._step)
                self._slot[: part.numel()] = part
                self._end.post(0, self._step)
            else:
                yield from self._end.receive(0, self._step)
                part.copy_(self._slot[: part.numel()])
                self._end.release(self._step)

    def close(self) -> None:
        """Let go of the memory, and close the channel."""
        self._end.close()
        self.channel.close()
