"""Which store of records a command line means."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import SpecError, nearest

if TYPE_CHECKING:
    import argparse

    from harness.records import Record
    from harness.store import Store


def opened(args: argparse.Namespace) -> Store:
    """The store under `--out`, or the project's own."""
    from harness import project
    from harness.store import Store

    return Store(Path(args.out) if args.out else project.runs())


def find(args: argparse.Namespace, name: str) -> Record:
    """The one record that a run key's head, a trial directory or a `record.json` names.

    Raises:
        SpecError: none does, or several do.
    """
    found = several(args, name)
    if len(found) > 1:
        keys = ", ".join(r.key[:16] for r in found[:4])
        raise SpecError.single(f"{name!r} names {len(found)} records", expected=f"more of one key, such as {keys}")
    return found[0]


def several(args: argparse.Namespace, name: str) -> list[Record]:
    """The records that a run directory, a trial directory, a record file, a spec name or a key's head names.

    Raises:
        SpecError: none does.
        StoreError: a file that is named is not a record.
    """
    from harness.store import read

    path = Path(name)
    files = [path] if path.is_file() else sorted(path.rglob("record.json")) if path.is_dir() else []
    if files:
        return [read(file) for file in files]
    store = opened(args)
    # A damaged record is told about, not left out: it may be the very one that was asked for.
    entries = store.list(spec=name) or store.list(key=name)
    records = [store.read(entry) for entry in entries]
    if not records:
        known = sorted({entry.spec for entry in store.list()})
        raise SpecError.single(
            f"no record is named {name!r}",
            expected="a run directory, a spec's name or the head of a run key; see 'harness ls runs'",
            suggestion=nearest(name, known),
        )
    return records
