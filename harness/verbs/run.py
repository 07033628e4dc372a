"""`harness run`: the main job. Resolve each spec, run what has no record yet, judge, show, report."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import Exit, SpecError

if TYPE_CHECKING:
    import argparse

    from harness.checks import Verdict
    from harness.load import Loaded
    from harness.records import Record
    from harness.trial import Trial


def run(args: argparse.Namespace) -> int:
    """Run every spec named; the exit code is the worst of theirs."""
    prepared = [_prepare(Path(name), args) for name in args.specs]
    return max(_run_one(loaded, trials, args) for loaded, trials in prepared)


def _prepare(path: Path, args: argparse.Namespace) -> tuple[Loaded, list[Trial]]:
    # Every spec is checked before the first one runs: a typo in the last must not cost the hours of the others.
    from harness.load import load_experiment
    from harness.resolve import resolve

    loaded = load_experiment(path, args.set)
    return loaded, resolve(loaded, on=args.on)


def _run_one(loaded: Loaded, trials: list[Trial], args: argparse.Namespace) -> int:
    from harness import checks, progress, project, references, runner
    from harness.store import Store

    if args.jobs < 0:
        raise SpecError.single(f"--jobs {args.jobs}", expected="a whole number of at least 0")
    store = Store(Path(args.out) if args.out else project.runs())
    address = args.on if args.on.startswith("ray://") else ""
    options = runner.RunOptions(mode=args.mode, jobs=args.jobs, fail_fast=args.fail_fast, ray_address=address)
    with progress.listener(as_json=args.json, quiet=args.quiet) as listener:
        outcome = runner.run(trials, store=store, options=options, listener=listener)
    published = references.load_all()
    verdicts = checks.judge(loaded.experiment, outcome.records, published)
    written = {} if args.no_report else _write_reports(loaded, outcome.records, store)
    _show(loaded, outcome.records, verdicts, written, args)
    if args.junit:
        from harness.report import junit

        junit.write(Path(args.junit), loaded.experiment, outcome.records, verdicts)
    if outcome.interrupted:
        return int(Exit.INTERRUPTED)
    return int(checks.exit_code(verdicts, outcome.records))


def _write_reports(loaded: Loaded, records: list[Record], store: object) -> dict[str, Path]:
    raise NotImplementedError


def _show(
    loaded: Loaded, records: list[Record], verdicts: list[Verdict], written: dict[str, Path], args: argparse.Namespace
) -> None:
    sys.stdout.write("")
