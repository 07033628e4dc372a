"""`zero-copy`: the paper's RDMA with the graph analyzer's help.

Tensors are produced in registered memory, where the analyzer lets their producers allocate them, and go from there to
where they are consumed. No payload byte is copied by a processor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from engines.rdma.transports.one_sided import OneSidedReceiver, OneSidedSender
from harness.api import HarnessError

if TYPE_CHECKING:
    from engines.rdma.device import Region
    from engines.rdma.tensors import Payload


class ZeroCopySender(OneSidedSender):
    """Sends tensors from where they were produced."""

    name: ClassVar[str] = "zero-copy"

    def _region(self, payload: Payload) -> Region:
        region = self._sources.region
        if region is None or [s.offset for s in self._sources.slots] != [s.offset for s in self._slots]:
            raise HarnessError(f"zero-copy: {payload.name}: tensors must be produced in the registered arena")
        return region

    def _stage(self, index: int) -> None:
        """They are there already."""


class ZeroCopyReceiver(OneSidedReceiver):
    """Consumes tensors where they arrive."""

    name: ClassVar[str] = "zero-copy"
