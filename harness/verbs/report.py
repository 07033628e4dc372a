"""`harness report`: write the report of what has been recorded; nothing is run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import Exit
from harness.verbs import run as run_verb
from harness.verbs import stores

if TYPE_CHECKING:
    import argparse


def run(args: argparse.Namespace) -> int:
    """Judge and lay out the records there are, as `run --mode read-only` would, and write the files."""
    from harness import checks, runner
    from harness.load import load_experiment
    from harness.progress import Silent
    from harness.resolve import resolve

    loaded = load_experiment(Path(args.specs[0]), args.set)
    store = stores.opened(args)
    options = runner.RunOptions(mode="read-only")
    outcome = runner.run(resolve(loaded, on=args.on), store=store, options=options, listener=Silent())
    content = run_verb.conclude(loaded, outcome, store, args, to=Path(args.to) if args.to else None)
    return int(checks.exit_code(content.verdicts, outcome.records) if outcome.records else Exit.FAILED)
