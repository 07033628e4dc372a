"""Where a receiver's tensors arrive when a library other than ours moves them: private memory, one place each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engines.rdma.memory import anonymous
from engines.rdma.placement import extent, lay_out
from engines.rdma.transports.base import POISON

if TYPE_CHECKING:
    from engines.rdma.tensors import Payload
    from engines.rdma.transports.base import Bytes1D

LARGE_PAGE = 2**21
"""Bytes of a large page on x86 and on most others; elsewhere a harmless rounding."""


class Landing:
    """Places for a payload's tensors, their pages mapped, laid out as those of our own transports are."""

    def __init__(self, payload: Payload) -> None:
        """Map the memory."""
        import numpy as np

        slots = lay_out(tensor.nbytes for tensor in payload.tensors)
        # Whole large pages: a kernel that copies from process to process (NIXL's way) looks up every page it writes to.
        nbytes = -(-max(extent(slots), 1) // LARGE_PAGE) * LARGE_PAGE
        self.whole: Bytes1D = np.frombuffer(anonymous(nbytes), np.uint8)
        self.places: list[Bytes1D] = [self.whole[slot.offset : slot.offset + slot.nbytes] for slot in slots]

    def poison(self) -> None:
        """Overwrite every place."""
        for place in self.places:
            place[:] = POISON


def stretch(array: Bytes1D) -> tuple[int, int]:
    """(address, bytes) of an array, as the libraries ask for them."""
    return array.ctypes.data, array.nbytes
