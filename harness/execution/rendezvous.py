"""A notice board for the ranks of one trial: a directory in which every key is a file.

A key is written aside and linked into place, so that a reader sees either nothing or the whole value, and a second
writer of the same key is refused. It carries addresses and readiness, never measured bytes.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

if TYPE_CHECKING:
    from pathlib import Path

_FIRST_PAUSE = 0.0002
_LONGEST_PAUSE = 0.02


class FileRendezvous:
    """The board of one trial, as one rank sees it."""

    def __init__(self, directory: Path, *, rank: int = 0, world_size: int = 1) -> None:
        self.directory = directory
        self.rank = rank
        self.world_size = world_size

    def set(self, key: str, value: str) -> None:
        """Publish a value; a key is written once.

        Raises:
            ValueError: the key is there already.
        """
        try:
            publish(self.directory, key, value)
        except FileExistsError:
            raise ValueError(f"rendezvous key {key!r} is already set") from None

    def get(self, key: str, timeout: float = 30.0) -> str:
        """Wait for a key.

        Raises:
            TimeoutError: nobody published it within `timeout` seconds.
        """
        path = self.directory / _file_name(key)
        deadline = time.monotonic() + timeout
        pause = _FIRST_PAUSE
        while True:
            with contextlib.suppress(FileNotFoundError):
                return path.read_text("utf-8")
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"no rank published {key!r} within {timeout:g} s")
            time.sleep(min(pause, left))
            pause = min(pause * 2, _LONGEST_PAUSE)

    def barrier(self, name: str, timeout: float = 30.0) -> None:
        """Wait until every rank has come to the barrier of this name; a name serves once.

        Raises:
            TimeoutError: a rank did not come; the message names it.
        """
        self.set(f"barrier {name} {self.rank}", "")
        deadline = time.monotonic() + timeout
        for rank in range(self.world_size):
            try:
                self.get(f"barrier {name} {rank}", max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                raise TimeoutError(f"rank {rank} did not come to barrier {name!r} within {timeout:g} s") from None


def publish(directory: Path, key: str, value: str) -> None:
    """Write one key.

    Raises:
        FileExistsError: the key is there already.
    """
    directory.mkdir(parents=True, exist_ok=True)
    aside = directory / f".{os.getpid()}-{time.monotonic_ns()}"
    aside.write_text(value, "utf-8")
    try:
        os.link(aside, directory / _file_name(key))
    finally:
        aside.unlink()


def keys(directory: Path) -> dict[str, str]:
    """Everything published so far."""
    if not directory.is_dir():
        return {}
    files = [p for p in directory.iterdir() if p.name.startswith("key-")]
    return {unquote(p.name.removeprefix("key-")): p.read_text("utf-8") for p in sorted(files)}


def _file_name(key: str) -> str:
    return f"key-{quote(key, safe=' ')}"
