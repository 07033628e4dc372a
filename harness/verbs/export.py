"""`harness export`: records as one long table, CSV or Parquet."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import Exit, SpecError, nearest
from harness.output import emit, say
from harness.verbs import stores

if TYPE_CHECKING:
    import argparse


def run(args: argparse.Namespace) -> int:
    """Write every record, or those of one experiment."""
    from harness.export import export

    store = stores.opened(args)
    records = store.records(spec=args.spec)
    if args.spec and not records:
        known = sorted({entry.spec for entry in store.list()})
        raise SpecError.single(f"no runs of {args.spec!r}", suggestion=nearest(args.spec, known))
    target = Path(args.to)
    rows = export(records, target)
    emit({"file": str(target), "rows": rows}) if args.json else say(f"{rows} rows written to {target}")
    return int(Exit.OK)
