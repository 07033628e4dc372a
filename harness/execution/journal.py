"""An append-only file of events, one JSON document a line: what a trial's process says before it may die.

Each event is one `write` to a file opened for appending, so whatever kills the process afterwards, the events
before it can be read. A last line that was cut short is ignored.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from harness.errors import StoreError

if TYPE_CHECKING:
    from pathlib import Path

FILE = "events.jsonl"


class Journal:
    """The writing end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StoreError(f"{path} cannot be written: {error.strerror}") from error

    def write(self, event: str, **content: Any) -> None:
        """Append one event.

        Raises:
            StoreError: the disk is full, or the file cannot be written.
        """
        line = json.dumps({"event": event, **content}, ensure_ascii=False).encode() + b"\n"
        try:
            written = os.write(self._file, line)
        except OSError as error:
            raise StoreError(f"{self.path} cannot be written: {error.strerror}") from error
        if written != len(line):
            raise StoreError(f"{self.path} cannot be written: only {written} of {len(line)} bytes fitted")

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def read(path: Path) -> list[dict[str, Any]]:
    """The whole events of a journal, in order; empty where there is no file."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    # What follows the last line feed was cut short.
    return [json.loads(line) for line in lines[:-1] if line]


def last(path: Path) -> str:
    """The kind of the last whole event, or an empty string."""
    events = read(path)
    return str(events[-1]["event"]) if events else ""
