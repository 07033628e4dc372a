"""How an open device ends: by its owner's `close`, or with its owner's process, and never in a forked child.

The bindings destroy what is garbage-collected. Two things follow, and both crash or cut connections:

- Objects of one device that go together go in any order. The `ibverbs` wheel dies of it (segmentation fault) when the
  interpreter clears up behind a program that did not close its devices. So an open device is kept, and closed at exit.
- After `fork` parent and child share one kernel object behind every queue pair and region: a child that merely ends
  would take its parent's connections down. So in a child a device is kept for ever, reference count and all.
"""

from __future__ import annotations

import atexit
import ctypes
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engines.rdma.providers.verbs.device import VerbsDevice

_open: set[VerbsDevice] = set()


def opened(device: VerbsDevice) -> None:
    """Keep a device until it is closed."""
    _open.add(device)


def closed(device: VerbsDevice) -> None:
    """Let go of one that is."""
    _open.discard(device)


def close_all() -> None:
    """Close what is still open; a forked child's copies stay as they are."""
    for device in list(_open):
        device.close()


def _keep() -> None:
    for device in _open:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(device))


atexit.register(close_all)
os.register_at_fork(after_in_child=_keep)
