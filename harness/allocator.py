"""The C allocator of this process: what it does with memory that is freed.

By default glibc gives large blocks back to the kernel at once, and the next one faults its pages in anew, at about a
microsecond per 4 KiB on a virtual machine. A program that allocates the same sizes over and over, as tensors are, then
measures the kernel. Frameworks have allocators of their own that keep memory; without one, glibc can be told to.
"""

from __future__ import annotations

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
"""Parameters of glibc's `mallopt`."""


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
