"""`harness reindex`: rebuild the index of records from the record files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.errors import Exit
from harness.output import emit, say
from harness.verbs import stores

if TYPE_CHECKING:
    import argparse


def run(args: argparse.Namespace) -> int:
    """Rebuild and say how many records there are."""
    count = stores.opened(args).reindex()
    emit({"records": count}) if args.json else say(f"{count} records indexed")
    return int(Exit.OK)
