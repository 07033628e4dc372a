"""Memory that is ready to be written: large pages where the kernel has them, and no page fault on first touch.

A fault costs about a microsecond per 4 KiB page on a virtual machine, several times the copy of the page itself, so a
transport that faults while it is measured measures the kernel.
"""

from __future__ import annotations

import mmap

POPULATE_WRITE = 23
"""MADV_POPULATE_WRITE (Linux 5.14), which the mmap module has no name for."""
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
"""Parameters of glibc's `mallopt`."""


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


def retain_freed_memory() -> bool:
    """Make the C allocator keep what is freed instead of giving it back to the kernel, in this process.

    Returns:
        Whether the allocator took the settings (glibc does, others need none or have their own).
    """
    import ctypes

    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):
        return False
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_ARENA_MAX, 1))
    taken = [library.mallopt(parameter, value) == 1 for parameter, value in settings]
    return all(taken)
