"""A device belongs to the process that opened it.

A forked child shares the parent's mappings and file descriptors: with verbs its writes would go to copied pages that
the adapter does not know, and here two processes would write one ring. So a device refuses to work in a child; open
one after forking, or start children with `spawn`.
"""

from __future__ import annotations

import os

from engines.rdma.device import WrongProcess

_forks = 0
"""How many forks lie between the first process and this one; a look at it is cheaper than a system call."""


def _count() -> None:
    global _forks
    _forks += 1


os.register_at_fork(after_in_child=_count)


class Home:
    """Remembers in which process it was made."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._forks = _forks

    @property
    def here(self) -> bool:
        """Whether this is still that process."""
        return self._forks == _forks

    def check(self) -> None:
        """Refuse to go on in a forked child.

        Raises:
            WrongProcess: this is not the process that opened the device.
        """
        if self._forks != _forks:
            raise WrongProcess(
                f"{self._what} was opened before this process was forked from its owner; "
                "open a device after forking, or start processes with 'spawn'"
            )
