"""Memory that is ready to be written: large pages where the kernel has them, and no page fault on first touch.

A fault costs about a microsecond per 4 KiB page on a virtual machine, several times the copy of the page itself, so a
transport that faults while it is measured measures the kernel. Small pages cost even when they are in place: copies of
64 MiB between shared pages of 4 KiB reached 0.75 of the rate of pages of 2 MiB (measured on a virtual machine, where
every miss of the address cache walks two tables).
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import time
from pathlib import Path

LARGE_PAGE = 2 * 2**20
"""Bytes of a large page of x86 and, with pages of 4 KiB, of ARM."""
_POPULATE_WRITE = 23
"""MADV_POPULATE_WRITE (Linux 5.14), which the mmap module has no name for."""
_COLLAPSE = 25
"""MADV_COLLAPSE (Linux 6.1): make large pages now, whatever the administrator's setting for shared memory."""
_MAP_FIXED, _MAP_NORESERVE = 0x10, 0x4000
_STRETCH = 32 * LARGE_PAGE
_COLLAPSE_SECONDS = 1.0
"""Processor time after which, in fragmented memory, the rest keeps its small pages."""


def anonymous(nbytes: int) -> memoryview:
    """Private memory with its pages in place."""
    memory = mmap.mmap(-1, max(nbytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for advice in (mmap.MADV_HUGEPAGE, _POPULATE_WRITE):
        try:
            memory.madvise(advice)
        except OSError:
            # A kernel that does not know one of them serves ordinary pages, or on demand.
            continue
    return memoryview(memory)[:nbytes]


def available_bytes() -> int:
    """Memory that could be had without swapping, as the kernel estimates it."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return int(rest.split()[0]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * mmap.PAGESIZE


class SharedMapping:
    """A mapping of a file in memory, at an address that allows for large pages.

    That needs addresses that are whole large pages apart from the file's, which the kernel does not choose where
    shared large pages are switched off in general. So address space is reserved first, and the file mapped inside.
    The reservation is an `mmap` object, which unmaps all of it once no view of it is left.
    """

    def __init__(self, file: int, nbytes: int) -> None:
        """Map `nbytes`, whole pages, from the start of `file`.

        Raises:
            OSError: the kernel refuses.
        """
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        self._reserved = mmap.mmap(-1, nbytes + LARGE_PAGE, flags=flags)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._reserved))
        self._pad = -start % LARGE_PAGE
        self.nbytes = nbytes
        _map_file(start + self._pad, nbytes, file)
        self.view = memoryview(self._reserved)[self._pad : self._pad + nbytes]
        self._advise(mmap.MADV_HUGEPAGE)

    def populate(self, file: int) -> bool:
        """Give the file all its pages, and map them; whether they are large as far as they can be.

        Raises:
            OSError: there is not so much memory.
        """
        # Only pages that are there can be made large ones.
        os.posix_fallocate(file, 0, self.nbytes)
        large = self._collapse()
        self._advise(_POPULATE_WRITE)
        return large

    def _collapse(self) -> bool:
        deadline = time.thread_time() + _COLLAPSE_SECONDS
        whole = self.nbytes // LARGE_PAGE * LARGE_PAGE
        for start in range(0, whole, _STRETCH):
            if time.thread_time() > deadline or not self._advise(_COLLAPSE, start, min(_STRETCH, whole - start)):
                return False
        return whole > 0

    def _advise(self, advice: int, start: int = 0, nbytes: int | None = None) -> bool:
        try:
            self._reserved.madvise(advice, self._pad + start, self.nbytes if nbytes is None else nbytes)
        except OSError as error:
            if error.errno == errno.ENOMEM and advice == _POPULATE_WRITE:
                raise
            return False
        return True

    def close(self) -> None:
        """Unmap; a view that somebody still holds keeps the mapping until it goes."""
        try:
            self.view.release()
            self._reserved.close()
        except BufferError:
            # Arrays over the memory are still alive: the mapping goes when the last of them does.
            return


def _map_file(address: int, nbytes: int, file: int) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    library.mmap.restype = ctypes.c_void_p
    arguments = (
        ctypes.c_void_p(address), ctypes.c_size_t(nbytes), mmap.PROT_READ | mmap.PROT_WRITE,
        mmap.MAP_SHARED | _MAP_FIXED, file, ctypes.c_long(0),
    )  # fmt: skip
    if library.mmap(*arguments) != address:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
