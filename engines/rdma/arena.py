"""A registered arena: one large piece of memory, handed out in aligned stretches.

Registering memory with an adapter pins pages and takes microseconds for each, so the paper (section 3.1) registers
once and allocates inside. Tensors of a static graph live until the graph changes: a pointer that only moves forward,
and one reset, is all the allocator they need.
"""

from __future__ import annotations

from dataclasses import dataclass

from engines.rdma.device import OutOfMemory


@dataclass
class Arena:
    """Hands out `[start, capacity)` of some memory."""

    start: int
    capacity: int

    def __post_init__(self) -> None:
        self._next = self.start

    @property
    def used(self) -> int:
        """Bytes handed out or lost to alignment."""
        return self._next - self.start

    def take(self, nbytes: int, align: int) -> int:
        """Offset of a fresh stretch of `nbytes`, a multiple of `align`.

        Raises:
            ValueError: a negative size, or an alignment that is not a power of two.
            OutOfMemory: with how much is short.
        """
        if nbytes < 0:
            raise ValueError(f"cannot allocate {nbytes} bytes")
        if align < 1 or align & (align - 1):
            raise ValueError(f"an alignment must be a power of two, got {align}")
        offset = -(-self._next // align) * align
        if offset + nbytes > self.capacity:
            short = offset + nbytes - self.capacity
            raise OutOfMemory(f"the arena of {self.capacity} bytes is {short} bytes too small for {nbytes} more")
        self._next = offset + nbytes
        return offset

    def reset(self) -> None:
        """Take everything back."""
        self._next = self.start
