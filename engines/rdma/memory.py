"""Memory that is ready to be written: large pages where the kernel has them, and no page fault on first touch.

A fault costs about a microsecond per 4 KiB page on a virtual machine, several times the copy of the page itself, so a
transport that faults while it is measured measures the kernel.
"""

from __future__ import annotations

import mmap

POPULATE_WRITE = 23
"""MADV_POPULATE_WRITE (Linux 5.14), which the mmap module has no name for."""


def prepare_pages(memory: mmap.mmap, *, populate: bool) -> None:
    """Ask for large pages, and map all of them now; a kernel that knows neither serves ordinary pages on demand."""
    for advice in (mmap.MADV_HUGEPAGE, POPULATE_WRITE)[: 1 + populate]:
        try:
            memory.madvise(advice)
        except OSError:
            continue


def anonymous(nbytes: int) -> memoryview:
    """Private memory with its pages in place."""
    memory = mmap.mmap(-1, max(nbytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    prepare_pages(memory, populate=True)
    return memoryview(memory)[:nbytes]
