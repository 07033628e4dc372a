"""The index of records: a table derived from the record files, so that listing need not read them.

It may be lost, stale or damaged at any time: every use compares the files' time, size and inode with what the table
says and reads again only what changed. A table that SQLite cannot read is thrown away and built anew.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

FILE = "index.sqlite"
RECORD = "record.json"
UNREADABLE = "unreadable"
"""State shown for a record file that is not a record."""
_VERSION = 1
_BUSY = 30.0
"""Seconds to wait for another process that writes the index."""


@dataclass(frozen=True)
class Entry:
    """One line of a listing."""

    path: str
    """Of the trial directory, relative to the root of all runs."""
    key: str
    spec: str
    cell: str
    backend: str
    hardware: str
    engine: str
    state: str
    started: str
    seconds: float
    plan_digest: str
    signature: str
    """Time, size and inode of the record file that this line was read from."""


_COLUMNS = ", ".join(f.name for f in fields(Entry))


class Index:
    """The table under one root; opened for each use, so that nothing is held between uses."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.path = root / FILE

    def refresh(self) -> list[Entry]:
        """Bring the table up to the files and return all of it, in the order of paths."""
        on_disk = scan(self.root)
        try:
            with self._open(thorough=True) as table:
                known = {e.path: e for e in _rows(table)}
                fresh = _changes(self.root, on_disk, known)
                gone = known.keys() - on_disk.keys()
                _apply(table, fresh, gone)
        except (sqlite3.Error, OSError):
            # Read-only, full or broken beyond rebuilding: the listing still comes from the files.
            known, fresh, gone = {}, _changes(self.root, on_disk, {}), set()
        known.update((e.path, e) for e in fresh)
        return [known[p] for p in sorted(known) if p not in gone]

    def add(self, path: Path) -> None:
        """Note one record that was just written. A failure is no harm: the next `refresh` repairs it."""
        with contextlib.suppress(sqlite3.Error, OSError), self._open() as table:
            _apply(table, [_entry(self.root, path, signature(path / RECORD))], set())

    def rebuild(self) -> int:
        """Throw the table away and build it from the files.

        Returns:
            How many records there are.
        """
        self._discard()
        return len(self.refresh())

    @contextlib.contextmanager
    def _open(self, *, thorough: bool = False) -> Iterator[sqlite3.Connection]:
        table = self._connect(thorough=thorough)
        try:
            with table:
                yield table
        finally:
            table.close()

    def _connect(self, *, thorough: bool) -> sqlite3.Connection:
        try:
            return self._prepared(thorough=thorough)
        except sqlite3.OperationalError:
            # Locked or read-only: throwing it away would not help.
            raise
        except sqlite3.DatabaseError:
            self._discard()
            return self._prepared(thorough=False)

    def _prepared(self, *, thorough: bool) -> sqlite3.Connection:
        table = sqlite3.connect(self.path, timeout=_BUSY)
        try:
            if table.execute("PRAGMA user_version").fetchone()[0] != _VERSION:
                _create(table)
            # Derived data need not survive a power cut, only be readable by others while one writes.
            table.execute("PRAGMA synchronous = OFF")
            table.execute(f"SELECT {_COLUMNS} FROM records LIMIT 1")
            if thorough and table.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
                raise sqlite3.DatabaseError("the index is damaged")
        except BaseException:
            table.close()
            raise
        return table

    def _discard(self) -> None:
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(OSError):
                Path(f"{self.path}{suffix}").unlink()


def scan(root: Path) -> dict[str, str]:
    """Trial directories that hold a record, relative to the root, with the record file's signature."""
    found = {}
    for spec in _folders(root):
        for trial in _folders(Path(spec)):
            with contextlib.suppress(OSError):
                found[os.path.relpath(trial, root)] = signature(f"{trial}/{RECORD}")
    return found


def signature(path: Path | str) -> str:
    """What changes when a file is replaced.

    Raises:
        OSError: there is no such file.
    """
    status = os.stat(path)  # noqa: PTH116  # ten thousand Path objects would cost more than the calls
    return f"{status.st_mtime_ns}:{status.st_size}:{status.st_ino}"


def _folders(path: Path) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return [e.path for e in entries if e.is_dir() and not e.name.startswith(".")]
    except OSError:
        return []


def _create(table: sqlite3.Connection) -> None:
    table.execute("PRAGMA journal_mode = WAL")
    table.execute("DROP TABLE IF EXISTS records")
    table.execute(f"CREATE TABLE records ({_COLUMNS}, PRIMARY KEY (path)) WITHOUT ROWID")
    table.execute(f"PRAGMA user_version = {_VERSION}")
    table.commit()


def _rows(table: sqlite3.Connection) -> Iterator[Entry]:
    return (Entry(*row) for row in table.execute(f"SELECT {_COLUMNS} FROM records"))


def _apply(table: sqlite3.Connection, fresh: list[Entry], gone: set[str]) -> None:
    marks = ", ".join("?" for _ in fields(Entry))
    if fresh:
        table.executemany(f"INSERT OR REPLACE INTO records ({_COLUMNS}) VALUES ({marks})", map(astuple, fresh))
    if gone:
        table.executemany("DELETE FROM records WHERE path = ?", [(p,) for p in gone])


def _changes(root: Path, on_disk: dict[str, str], known: dict[str, Entry]) -> list[Entry]:
    return [_entry(root, root / p, s) for p, s in on_disk.items() if p not in known or known[p].signature != s]


def _entry(root: Path, directory: Path, sign: str) -> Entry:
    path = os.path.relpath(directory, root)
    try:
        content: dict[str, Any] = json.loads((directory / RECORD).read_bytes())
        target = content["target"]
        return Entry(
            path=path,
            signature=sign,
            backend=target["backend"],
            hardware=target["hardware"],
            **{n: content[n] for n in ("key", "spec", "cell", "engine", "state", "started", "seconds", "plan_digest")},
        )
    except (OSError, ValueError, KeyError, TypeError):
        # Somebody edited or damaged it. It stays visible, under a state that no trial ends with.
        return Entry(path, "", Path(path).parts[0], "", "", "", "", UNREADABLE, "", 0.0, "", sign)
