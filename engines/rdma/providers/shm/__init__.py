"""The shared-memory provider: one-sided writes between processes of one host."""

from __future__ import annotations

from engines.rdma.providers.shm.device import SharedMemoryDevice


def open_device(capacity: int) -> SharedMemoryDevice:
    """A device of this process with `capacity` bytes of arena."""
    return SharedMemoryDevice(capacity)
