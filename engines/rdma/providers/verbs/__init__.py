"""Real verbs: the same code for Soft-RoCE and for adapters. See `docs/rdma-hardware.md`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engines.rdma.providers.verbs.device import VerbsDevice


def open_device(capacity: int, **options: Any) -> VerbsDevice:
    """Open an RDMA device with `capacity` bytes of arena.

    The options are those of `VerbsDevice`; which adapter, port and GID are this host's may be in its environment.
    """
    from engines.rdma.providers.verbs import environment
    from engines.rdma.providers.verbs.device import VerbsDevice

    return VerbsDevice(capacity, **{**environment.options(os.environ), **options})
