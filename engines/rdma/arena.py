"""A registered arena: one large piece of memory, handed out in aligned stretches.

Registering memory with an adapter pins pages and takes microseconds for each, so one registers once and allocates
inside. Tensors of a static graph live until the graph changes; those placed dynamically come and go at every step, so
stretches can be given back. The same allocator divides a device's memory into regions (each a registration) and a
region into tensors (none).

First fit over the free stretches in order of address (Knuth, The Art of Computer Programming, volume 1, section 2.5),
joined with their free neighbours when given back. An iteration of training asks for the same sizes in the same order,
so it finds the places of the one before.
"""

from __future__ import annotations

from bisect import bisect

from engines.rdma.device import OutOfMemory


class Arena:
    """Hands out parts of `[start, end)` of some memory; it knows offsets only."""

    def __init__(self, start: int, end: int) -> None:
        if not 0 <= start <= end:
            raise ValueError(f"an arena needs 0 <= start <= end, got [{start}, {end})")
        self.start = start
        self.end = end
        self.reset()

    def reset(self) -> None:
        """Take everything back."""
        self._free = [(self.start, self.end)] if self.end > self.start else []
        """Free stretches `[from, to)` by address; no two touch."""
        self._taken: dict[int, int] = {}
        """Offset of a live stretch -> its end."""
        self.used = 0
        """Bytes handed out; an empty stretch counts one."""

    @property
    def largest(self) -> int:
        """Bytes of the longest free stretch."""
        return max((end - start for start, end in self._free), default=0)

    def take(self, nbytes: int, align: int = 1) -> int:
        """Offset of a stretch of `nbytes`, a multiple of `align`; no live stretch has the same offset.

        Raises:
            ValueError: a negative size, or an alignment that is not a power of two.
            OutOfMemory: with how much is short.
        """
        if nbytes < 0:
            raise ValueError(f"cannot allocate {nbytes} bytes")
        if align < 1 or align & (align - 1):
            raise ValueError(f"an alignment must be a power of two, got {align}")
        size = max(nbytes, 1)
        for index, (start, end) in enumerate(self._free):
            offset = -(-start // align) * align
            if offset + size <= end:
                rest = [(start, offset), (offset + size, end)]
                self._free[index : index + 1] = [(a, b) for a, b in rest if a < b]
                self._taken[offset] = offset + size
                self.used += size
                return offset
        raise OutOfMemory(self._shortage(nbytes, align))

    def _shortage(self, nbytes: int, align: int) -> str:
        best = max((end - -(-start // align) * align for start, end in self._free), default=0)
        short = max(nbytes, 1) - max(best, 0)
        message = f"the arena of {self.end - self.start} bytes is {short} bytes too small for {nbytes} more"
        free = self.end - self.start - self.used
        if free >= nbytes:
            message += f": {free} are free, at most {self.largest} in one piece"
        return message

    def give(self, offset: int) -> None:
        """Take back the stretch at `offset`.

        Raises:
            ValueError: nothing lives there (any more).
        """
        end = self._taken.pop(offset, None)
        if end is None:
            raise ValueError(f"offset {offset} was not handed out, or was given back already")
        self.used -= end - offset
        index = bisect(self._free, (offset, end))
        if index < len(self._free) and self._free[index][0] == end:
            end = self._free.pop(index)[1]
        start = offset
        if index and self._free[index - 1][1] == offset:
            index -= 1
            start = self._free.pop(index)[0]
        self._free.insert(index, (start, end))
