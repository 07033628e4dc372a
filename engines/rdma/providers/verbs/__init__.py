"""Real verbs: the same code for Soft-RoCE and for adapters. See `docs/rdma-hardware.md`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engines.rdma.providers.verbs.device import VerbsDevice


def open_device(capacity: int, **options: Any) -> VerbsDevice:
    """Open an RDMA device with `capacity` bytes of arena; the options are those of `VerbsDevice`."""
    from engines.rdma.providers.verbs.device import VerbsDevice

    return VerbsDevice(capacity, **options)
