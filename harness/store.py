"""Where records are kept: one directory a trial, whose `record.json` is the truth.

::

    results/runs/index.sqlite                          derived from the record files
    results/runs/<spec>/<cell>-<head of key>/record.json
    results/runs/<spec>/<cell>-<head of key>/attempts/<n>/rank0/{trial.json,events.jsonl,stdout.log,stderr.log}
    results/runs/<spec>/<cell>-<head of key>/attempts/<n>/artifacts/

A record is written aside, forced to the disk and renamed: a reader, a crash or a full disk sees the old record or
the new one, never a half. A trial directory without a record is one that was not finished; it is run again.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from harness.errors import StoreError
from harness.index import RECORD, Entry, Index, signature
from harness.records import Record

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.trial import Trial


class Store:
    """The records under one directory (`results/runs`); many processes may use it at once."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._index = Index(directory)

    def trial_directory(self, trial: Trial) -> Path:
        """Where a trial's record goes."""
        return self.directory / trial.spec / trial.directory_name

    def record_directory(self, record: Record) -> Path:
        """Where a record lies; its artifacts' paths are relative to it."""
        return self.directory / record.spec / f"{record.cell}-{record.key[:12]}"

    def write(self, record: Record) -> Path:
        """Put a record in its place, whole.

        Returns:
            The record file.

        Raises:
            StoreError: the disk is full or cannot be written; what was there before is intact.
        """
        directory = self.record_directory(record)
        with writing(directory):
            directory.mkdir(parents=True, exist_ok=True)
            write_atomically(directory / RECORD, record.model_dump_json(indent=1).encode())
        self._index.add(directory)
        return directory / RECORD

    def find(self, trial: Trial) -> Record | None:
        """The record of a trial, or None while there is none; a damaged one counts as none."""
        try:
            return read(self.trial_directory(trial) / RECORD)
        except StoreError:
            return None

    def signature(self, trial: Trial) -> str:
        """Changes whenever the trial's record is replaced; empty while there is none."""
        try:
            return signature(self.trial_directory(trial) / RECORD)
        except OSError:
            return ""

    def records(self, spec: str = "") -> list[Record]:
        """Whole records, of one experiment or all, in the order of their directories; damaged ones are left out."""
        found = []
        for entry in self.list(spec=spec):
            with contextlib.suppress(StoreError):
                found.append(read(self.directory / entry.path / RECORD))
        return found

    def list(self, *, spec: str = "", state: str = "", key: str = "") -> list[Entry]:
        """Lines about records, without reading them; only of this experiment, state or head of a key."""
        return [
            e
            for e in self._index.refresh()
            if (not spec or e.spec == spec) and (not state or e.state == state) and e.key.startswith(key)
        ]

    def read(self, entry: Entry) -> Record:
        """The whole record of a line.

        Raises:
            StoreError: it is gone or damaged.
        """
        return read(self.directory / entry.path / RECORD)

    def reindex(self) -> int:
        """Build the index anew from the record files.

        Returns:
            How many there are.
        """
        return self._index.rebuild()


def read(path: Path) -> Record:
    """One record file.

    Raises:
        StoreError: it is not there, or is not a record of a version this release reads.
    """
    try:
        return Record.model_validate_json(path.read_bytes())
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "file"
        raise StoreError(
            f"{path} is not a record: {place}: {first['msg']}; delete it to run the trial again"
        ) from error


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file by a whole new one that is on the disk before it has the name.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    handle, aside = tempfile.mkstemp(prefix=".record-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp keeps the file to its owner; results are for the group to read.
        os.chmod(aside, 0o644)  # noqa: PTH101
        os.replace(aside, path)  # noqa: PTH105
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(aside)  # noqa: PTH108
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextlib.contextmanager
def writing(place: Path) -> Iterator[None]:
    """Turn what the file system says into one clear error."""
    try:
        yield
    except (FileExistsError, NotADirectoryError) as error:
        raise StoreError(f"{error.filename or place} is a file; expected a directory: choose another --out") from error
    except OSError as error:
        raise StoreError(
            f"cannot write {error.filename or place}: {error.strerror}; earlier records are intact: "
            "make room or choose another --out, and run the same command again"
        ) from error


def new_attempt(directory: Path) -> Path:
    """A new, empty directory for one attempt at the trial whose directory this is."""
    attempts = directory / "attempts"
    attempts.mkdir(parents=True, exist_ok=True)
    number = max((int(p.name) for p in attempts.iterdir() if p.name.isdigit()), default=0)
    while True:
        number += 1
        with contextlib.suppress(FileExistsError):
            (attempts / str(number)).mkdir()
            return attempts / str(number)


def discard_attempts(directory: Path, *, newest: int = 0) -> None:
    """Delete all attempts but the newest few, with the scratch directories they left if they were killed."""
    attempts = directory / "attempts"
    there = [p for p in attempts.iterdir() if p.name.isdigit()] if attempts.is_dir() else []
    there.sort(key=lambda p: int(p.name), reverse=True)
    for attempt in there[newest:]:
        _discard_scratch(attempt)
        shutil.rmtree(attempt, ignore_errors=True)
    for aside in directory.glob(".record-*"):
        with contextlib.suppress(OSError):
            aside.unlink()


def _discard_scratch(attempt: Path) -> None:
    with contextlib.suppress(OSError, ValueError, KeyError):
        scratch = json.loads((attempt / "rank0" / "trial.json").read_text("utf-8"))["scratch"]
        if scratch and Path(scratch).name.startswith("harness-"):
            shutil.rmtree(scratch, ignore_errors=True)
