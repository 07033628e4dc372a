"""`copy`: the paper's RDMA without the graph analyzer's help.

Tensors are produced wherever the framework puts them; the sender copies each into registered memory first, once. The
copy of a tensor overlaps the write of the one before where an adapter does the writing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from engines.rdma.device import Access
from engines.rdma.placement import ALIGN
from engines.rdma.transports.one_sided import OneSidedReceiver, OneSidedSender, landing_bytes

if TYPE_CHECKING:
    from engines.rdma.device import Device, Region
    from engines.rdma.tensors import Payload
    from engines.rdma.transports.base import Setting


class CopySender(OneSidedSender):
    """Copies every tensor into registered memory, and sends it from there."""

    name: ClassVar[str] = "copy"

    def __init__(self, device: Device, setting: Setting) -> None:
        """Register room for the largest payload."""
        super().__init__(device, setting)
        access = Access.LOCAL_WRITE | Access.REMOTE_READ
        self._staging = device.allocate(landing_bytes(setting), access=access, align=ALIGN)

    def _region(self, payload: Payload) -> Region:  # noqa: ARG002 - one for all payloads
        return self._staging

    def _stage(self, index: int) -> None:
        slot = self._slots[index]
        self._staging.view[slot.offset : slot.offset + slot.nbytes] = self._sources[index].data
        self.device.ledger.count("tensor to registered memory", slot.nbytes)


class CopyReceiver(OneSidedReceiver):
    """Consumes tensors where they arrive."""

    name: ClassVar[str] = "copy"
