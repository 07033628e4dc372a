"""A piece of memory that processes of one host share.

It is an anonymous file (`memfd`), mapped by its owner and by every peer. It has no name, so nothing can be left behind,
however a process dies: the kernel frees it with the last mapping. A peer opens it through the owner's
`/proc/<pid>/fd`, and the inode proves that it is the file meant and not that of a later process with the same id.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from dataclasses import dataclass

from engines.rdma.device import InvalidDescriptor, ProviderUnavailable, Unavailable
from engines.rdma.memory import LARGE_PAGE, SharedMapping, available_bytes

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
"""A peer's file that became shorter would end this process at its next access to it."""


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

    def __init__(self, file: int, nbytes: int) -> None:
        """Map `nbytes` of `file`; the segment closes the file in the end.

        Raises:
            OSError: the kernel refuses.
        """
        self.file = file
        self.nbytes = nbytes
        self._mapping = SharedMapping(file, nbytes)
        self.large_pages = False
        """Whether all of it that can be was given large pages when it was created."""
        self.bytes = self._mapping.view
        self.words = self.bytes.cast("Q")

    @classmethod
    def create(cls, name: str, nbytes: int) -> Segment:
        """Fresh zeroed memory, its pages in place; `nbytes` is rounded up to whole pages.

        Raises:
            ProviderUnavailable: the kernel has no memfd, or refuses this much memory.
        """
        page = LARGE_PAGE if nbytes >= LARGE_PAGE else mmap.PAGESIZE
        nbytes = max(1, -(-nbytes // page)) * page
        if nbytes > (free := available_bytes()):
            # The kernel would grant it, and end some process when the pages are asked for.
            raise _refused(nbytes, f"{free} bytes are available")
        try:
            file = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        except (OSError, AttributeError) as error:
            raise ProviderUnavailable(Unavailable.KERNEL, f"anonymous shared files (memfd): {error}") from error
        try:
            os.ftruncate(file, nbytes)
            fcntl.fcntl(file, fcntl.F_ADD_SEALS, _SEALS)
            segment = cls(file, nbytes)
        except OSError as error:
            os.close(file)
            raise _refused(nbytes, error) from error
        try:
            segment.large_pages = segment._mapping.populate(file)
        except OSError as error:
            segment.close()
            raise _refused(nbytes, error) from error
        return segment

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
            if fcntl.fcntl(file, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
                raise InvalidDescriptor("the file at this address can still change its size")
            # Of a peer's memory a process touches a part; that part is mapped by the first, untimed step.
            return cls(file, place.nbytes)
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
        self._mapping.close()


def _refused(nbytes: int, error: object) -> ProviderUnavailable:
    return ProviderUnavailable(Unavailable.MEMORY, f"shared memory of {nbytes} bytes: {error}")


def _unreachable(place: Place, error: OSError) -> ProviderUnavailable:
    return ProviderUnavailable(Unavailable.PEER, f"the memory of process {place.pid} cannot be mapped: {error}")
