"""A memory barrier on every processor, so that the frequent side of an agreement needs none.

A writer stores "busy" and then looks whether the region still lives; whoever takes the region away stores that it is
gone and then looks whether somebody is busy. Processors let a load pass an earlier store, so each could miss the
other's word. `membarrier` (Linux 4.16) makes the rare side pay for both: once it returns, whatever a registered process
stored before is visible, and it has not yet loaded what comes after.
"""

from __future__ import annotations

import ctypes
import platform

_NUMBER = {"x86_64": 324, "aarch64": 283}.get(platform.machine())
_GLOBAL_EXPEDITED, _REGISTER_GLOBAL_EXPEDITED = 1 << 1, 1 << 2


def register() -> None:
    """Let this process take part, as one whose stores others wait for."""
    _call(_REGISTER_GLOBAL_EXPEDITED)


def everywhere() -> None:
    """Order memory on all processors that run a registered process; does nothing where the kernel cannot."""
    _call(_GLOBAL_EXPEDITED)


def _call(command: int) -> None:
    if _NUMBER is not None:
        ctypes.CDLL(None).syscall(_NUMBER, command, 0, 0)
