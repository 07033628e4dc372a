"""A device belongs to the process that opened it.

A forked child shares the parent's mappings and file descriptors: with verbs its writes would go to copied pages that
the adapter does not know, and here two processes would write one ring. So a device refuses to work in a child; open
one after forking, or start children with `spawn`.
"""

from __future__ import annotations

import os
from weakref import WeakSet

from engines.rdma.device import WrongProcess


class Home:
    """Remembers in which process it was made."""

    def __init__(self, what: str) -> None:
        self._what = what
        self.here = True
        """Whether this is still that process; a look at it costs no system call."""
        _homes.add(self)

    def check(self) -> None:
        """Refuse to go on in a forked child.

        Raises:
            WrongProcess: this is not the process that opened the device.
        """
        if not self.here:
            raise WrongProcess(
                f"{self._what} was opened before this process was forked from its owner; "
                "open a device after forking, or start processes with 'spawn'"
            )


_homes: WeakSet[Home] = WeakSet()


def _leave() -> None:
    for home in _homes:
        home.here = False


os.register_at_fork(after_in_child=_leave)
