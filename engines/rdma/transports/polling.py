"""Waiting for a library that has to be asked: look, and give way when there was nothing."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, TypeVar

from engines.rdma.placement import PeerLost

if TYPE_CHECKING:
    from collections.abc import Callable

    from engines.rdma.session import Session

T = TypeVar("T")
YIELDS_PER_CHECK = 512
"""Times of giving way between two looks at whether the peer still lives (a system call)."""


def poll(look: Callable[[], T | None], *, session: Session, looks: int, what: str) -> T:
    """Ask until there is an answer.

    Args:
        look: returns the answer, or None.
        session: knows whether the other rank lives, and how long to wait for it.
        looks: between two times of giving way. Few where a thread of the library does the work, since it needs the
            processor that this one holds; more where looking is what moves the bytes.
        what: is waited for, for the error message.

    Raises:
        PeerLost: the other rank ended, or the session's timeout passed.
    """
    deadline = time.monotonic() + session.timeout
    while True:
        for _ in range(YIELDS_PER_CHECK):
            for _ in range(looks):
                found = look()
                if found is not None:
                    return found
            os.sched_yield()
        if not session.peer_alive():
            # It may have answered before it ended.
            found = look()
            if found is not None:
                return found
            raise PeerLost(f"{what}: the other rank ended")
        if time.monotonic() > deadline:
            raise PeerLost(f"{what}: nothing came within {session.timeout:g} s")
