"""`harness schema`: write the JSON Schemas that editors use, or check that the committed ones are current."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.errors import Exit
from harness.output import complain, emit, say

if TYPE_CHECKING:
    import argparse


def run(args: argparse.Namespace) -> int:
    """Write to specs/schema; with --check, write nothing and exit 1 where a file is out of date."""
    from harness import project, schema

    folder = project.root() / "specs" / "schema"
    texts = schema.files()
    stale = [n for n, t in texts.items() if not (folder / n).is_file() or (folder / n).read_text("utf-8") != t]
    if args.check:
        for name in stale:
            complain(f"specs/schema/{name} is out of date; run 'harness schema'")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        for name in stale:
            (folder / name).write_text(texts[name], "utf-8")
    if args.json:
        emit({"files": sorted(texts), "stale": stale})
    elif not args.check:
        say(f"{len(stale)} of {len(texts)} schema files written to {folder}")
    return int(Exit.FAILED if args.check and stale else Exit.OK)
