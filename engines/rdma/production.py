"""Where a payload's tensors are produced: registered memory if there is any, as the graph analyzer arranges it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engines.rdma import memory
from engines.rdma.device import Access
from engines.rdma.placement import ALIGN, choose_signal, lay_out
from engines.rdma.transports.base import Sources
from engines.rdma.transports.one_sided import landing_bytes

if TYPE_CHECKING:
    from engines.rdma.device import Device
    from engines.rdma.tensors import Payload
    from engines.rdma.transports.base import Setting


class Producer:
    """Registered memory for the tensors of one payload after another; every transport over the device sends from it."""

    def __init__(self, device: Device, setting: Setting) -> None:
        """Register room for the largest payload, once."""
        self._signal = choose_signal(setting.signal, device.traits)
        access = Access.LOCAL_WRITE | Access.REMOTE_READ
        self._region = device.allocate(landing_bytes(setting), access=access, align=ALIGN)

    def sources(self, payload: Payload) -> Sources:
        """Places for the payload's tensors, each with room for what a static placement writes behind it."""
        import numpy as np

        slots = lay_out((tensor.nbytes for tensor in payload.tensors), self._signal)
        whole = np.frombuffer(self._region.view, np.uint8)
        views = [whole[slot.offset : slot.offset + slot.nbytes] for slot in slots]
        return Sources(views, region=self._region, slots=slots)


def private_sources(payload: Payload) -> Sources:
    """Places in ordinary memory."""
    import numpy as np

    return Sources([np.frombuffer(memory.anonymous(tensor.nbytes), np.uint8) for tensor in payload.tensors])
