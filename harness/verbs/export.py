"""`harness export`: records as one long table, CSV or Parquet."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import Exit
from harness.output import emit, say
from harness.verbs import stores

if TYPE_CHECKING:
    import argparse


def run(args: argparse.Namespace) -> int:
    """Write every record, or those of one experiment."""
    from harness.export import export

    records = list(stores.opened(args).records(spec=args.spec))
    target = Path(args.to)
    rows = export(records, target)
    emit({"file": str(target), "rows": rows}) if args.json else say(f"{rows} rows written to {target}")
    return int(Exit.OK)
