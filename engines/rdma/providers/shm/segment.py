"""A piece of memory that processes of one host share.

It is an anonymous file (`memfd`), mapped by its owner and by every peer. It has no name, so nothing can be left behind,
however a process dies: the kernel frees it with the last mapping. A peer opens it through the owner's
`/proc/<pid>/fd`, and the inode proves that it is the file meant and not that of a later process with the same id.
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass

from engines.rdma.device import InvalidDescriptor, ProviderUnavailable, Unavailable
from engines.rdma.memory import prepare_pages


@dataclass(frozen=True)
class Place:
    """Where a segment is found by another process."""

    pid: int
    file: int
    """Descriptor in that process."""
    inode: int
    nbytes: int


class Segment:
    """One mapping, of this process's own memory or of a peer's."""

    def __init__(self, file: int, nbytes: int, *, populate: bool) -> None:
        """Map `nbytes` of `file`; the segment closes the file in the end.

        Raises:
            OSError: the kernel refuses.
        """
        self.file = file
        self.nbytes = nbytes
        self._map = mmap.mmap(file, nbytes)
        prepare_pages(self._map, populate=populate)
        self.bytes = memoryview(self._map)
        self.words = self.bytes.cast("Q")

    @classmethod
    def create(cls, name: str, nbytes: int) -> Segment:
        """Fresh zeroed memory, its pages in place; `nbytes` is rounded up to whole pages.

        Raises:
            ProviderUnavailable: the kernel has no memfd, or refuses this much memory.
        """
        nbytes = max(1, -(-nbytes // mmap.PAGESIZE)) * mmap.PAGESIZE
        try:
            file = os.memfd_create(name, os.MFD_CLOEXEC)
        except (OSError, AttributeError) as error:
            raise ProviderUnavailable(Unavailable.KERNEL, f"anonymous shared files (memfd): {error}") from error
        try:
            os.ftruncate(file, nbytes)
            return cls(file, nbytes, populate=True)
        except OSError as error:
            os.close(file)
            raise ProviderUnavailable(Unavailable.MEMORY, f"shared memory of {nbytes} bytes: {error}") from error

    @classmethod
    def attach(cls, place: Place) -> Segment:
        """Map a peer's memory.

        Raises:
            ProviderUnavailable: it cannot be opened or mapped.
            InvalidDescriptor: another file lies there.
        """
        try:
            file = os.open(f"/proc/{place.pid}/fd/{place.file}", os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise _unreachable(place, error) from error
        try:
            found = os.fstat(file)
            if (found.st_ino, found.st_size) != (place.inode, place.nbytes):
                raise InvalidDescriptor("the file at this address is not the one that was published")
            # Of a peer's memory a process touches a part; that part is mapped by the first, untimed step.
            return cls(file, place.nbytes, populate=False)
        except OSError as error:
            os.close(file)
            raise _unreachable(place, error) from error
        except BaseException:
            os.close(file)
            raise

    @property
    def place(self) -> Place:
        """What a peer must know to `attach`."""
        return Place(os.getpid(), self.file, os.fstat(self.file).st_ino, self.nbytes)

    def close(self) -> None:
        """Unmap; a view that somebody still holds keeps the mapping until it goes."""
        os.close(self.file)
        self.words.release()
        try:
            self.bytes.release()
            self._map.close()
        except BufferError:
            # Arrays over the memory are still alive: the mapping goes when the last of them does.
            return


def _unreachable(place: Place, error: OSError) -> ProviderUnavailable:
    return ProviderUnavailable(Unavailable.PEER, f"the memory of process {place.pid} cannot be mapped: {error}")
