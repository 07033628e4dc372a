"""What a forked child must not do: let go of its parent's adapter.

After `fork` parent and child share one kernel object behind every queue pair and region. The bindings destroy what is
garbage-collected, so a child that merely ends would take its parent's connections down. In a child every open device
is therefore kept for ever, reference count and all: the interpreter's own clearing up does not reach it.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engines.rdma.providers.verbs.device import VerbsDevice

_devices: weakref.WeakSet[VerbsDevice] = weakref.WeakSet()


def protect(device: VerbsDevice) -> None:
    """Keep a device that a child inherits from being taken down there."""
    _devices.add(device)


def _keep() -> None:
    for device in _devices:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(device))


os.register_at_fork(after_in_child=_keep)
