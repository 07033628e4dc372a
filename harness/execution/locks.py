"""Locks between processes on one directory.

They are the kernel's file locks: a process that is killed loses its own at once, so none is ever stale. The lock
files stay; deleting one would let two processes lock two files of the same name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from filelock import BaseFileLock


def of(path: Path) -> BaseFileLock:
    """The lock that the file at `path` stands for; not taken yet."""
    from filelock import FileLock

    return FileLock(path, thread_local=False)


def acquire(lock: BaseFileLock) -> bool:
    """Take a lock without waiting.

    Returns:
        Whether it is taken.
    """
    from filelock import Timeout

    try:
        lock.acquire(blocking=False)
    except Timeout:
        return False
    return True
