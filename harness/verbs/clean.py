"""`harness clean`: delete the run directories of named experiments, or all."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from harness.errors import Exit, SpecError, nearest
from harness.output import emit, say
from harness.verbs import stores

if TYPE_CHECKING:
    import argparse
    from pathlib import Path


def run(args: argparse.Namespace) -> int:
    """Delete, then rebuild the index; records under results/measured are never touched."""
    store = stores.opened(args)
    there = sorted(p.name for p in store.directory.iterdir() if _is_run(p)) if store.directory.is_dir() else []
    if args.all and args.names:
        raise SpecError.single(f"--all and {', '.join(args.names)} named to clean", expected="one of the two")
    names = there if args.all else args.names
    if not names and not args.all:
        raise SpecError.single("nothing named to clean", expected=f"--all or any of {', '.join(there) or '(no runs)'}")
    for name in names:
        if name not in there:
            raise SpecError.single(f"no runs of {name!r}", suggestion=nearest(name, there))
    for name in names:
        shutil.rmtree(store.directory / name)
    if there:
        store.reindex()
    emit({"deleted": names}) if args.json else say(
        f"deleted {len(names)} run director{'y' if len(names) == 1 else 'ies'}"
    )
    return int(Exit.OK)


def _is_run(directory: Path) -> bool:
    """Whether runs were kept here. `--out` may name any folder, and what is not ours must not be deleted."""
    if directory.is_symlink() or not directory.is_dir():
        return False
    marks = ("*/record.json", "*/attempts", "report/report.md")
    return any(next(directory.glob(mark), None) is not None for mark in marks)
