"""`harness run`: the main job. Resolve each spec, run what has no record yet, judge, show, report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import Exit, Problem, SpecError
from harness.output import complain, emit

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from harness.load import Loaded
    from harness.report.content import Content
    from harness.runner import Ran
    from harness.store import Store
    from harness.trial import Trial


@dataclass(frozen=True)
class _Prepared:
    loaded: Loaded
    trials: list[Trial]


def run(args: argparse.Namespace) -> int:
    """Run every spec named; the exit code is the worst of theirs."""
    if args.jobs < 0:
        raise SpecError.single(f"--jobs {args.jobs}", expected="a whole number of at least 0")
    # Every spec is checked before the first one runs: a typo in the last must not cost the hours of the others.
    prepared = [one for name in args.specs for one in _prepare(Path(name), args)]
    _refuse_namesakes(prepared)
    codes = []
    for one in prepared:
        codes.append(_run_one(one, args))
        if codes[-1] == Exit.INTERRUPTED:
            break
    return max(codes)


def _prepare(path: Path, args: argparse.Namespace) -> list[_Prepared]:
    """A spec and those it names under `also`."""
    from harness.load import load_with_others
    from harness.resolve import resolve

    return [_Prepared(loaded, resolve(loaded, on=args.on)) for loaded in load_with_others(path, args.set)]


def _refuse_namesakes(prepared: Sequence[_Prepared]) -> None:
    """Two specs of one name share a run directory, and the second's report would replace the first's."""
    seen: dict[str, Path] = {}
    for one in prepared:
        name, path = one.loaded.experiment.name, one.loaded.path
        earlier = seen.setdefault(name.casefold(), path)
        if not earlier.samefile(path):
            document = one.loaded.document
            what = f"the spec is named {name!r}, and so is {earlier}"
            raise SpecError([document.place(Problem(("name",), what, "names that differ by more than their case"))])


def _run_one(prepared: _Prepared, args: argparse.Namespace) -> int:
    from harness import checks, progress, runner
    from harness.verbs import stores

    store = stores.opened(args)
    options = runner.RunOptions(
        mode=args.mode,
        jobs=args.jobs,
        fail_fast=args.fail_fast,
        ray_address=args.on if args.on.startswith("ray://") else "",
    )
    with progress.listener(as_json=args.json, quiet=args.quiet) as listener:
        outcome = runner.run(prepared.trials, store=store, options=options, listener=listener)
    content = conclude(prepared.loaded, outcome, store, args, written=not args.no_report)
    if outcome.interrupted:
        return int(Exit.INTERRUPTED)
    code = checks.exit_code(content.verdicts, outcome.records)
    if outcome.missing:
        # A run that was to judge what is there must not pass for want of anything to judge.
        code = max(code, Exit.FAILED)
    return int(code)


def conclude(
    loaded: Loaded,
    outcome: Ran,
    store: Store,
    args: argparse.Namespace,
    *,
    written: bool = True,
    to: Path | None = None,
) -> Content:
    """Judge what came of a run, write its files, and show it; each of them works from the same content."""
    from harness.report.content import gather

    content = gather(loaded.experiment, outcome.records, locate=store.record_directory)
    files = _write(content, to or store.directory / loaded.experiment.name / "report") if written else {}
    _show(content, files, args)
    if args.junit:
        from harness.report import junit

        junit.write(Path(args.junit), loaded.experiment, outcome.records, content.verdicts)
    if outcome.missing:
        total = len(outcome.records) + len(outcome.missing)
        complain(
            f"{len(outcome.missing)} of {total} trials have no record; 'harness run' without --mode read-only runs them"
        )
    return content


def _write(content: Content, directory: Path) -> dict[str, Path]:
    """The report files; what an extra is needed for is left out where that is missing."""
    from importlib.util import find_spec

    from harness import report

    formats = ["md", "csv"]
    if all(find_spec(module) for module in ("jinja2", "matplotlib")):
        formats.insert(0, "html")
    else:
        complain("no HTML page: it needs pip install 'harness[report]'")
    return report.write_content(content, directory=directory, formats=formats)


def _show(content: Content, written: dict[str, Path], args: argparse.Namespace) -> None:
    """The tables, verdicts and files on a terminal, or one JSON document."""
    if args.json:
        emit(_summary(content, written))
        return
    from harness.report import terminal

    terminal.show_content(content, written=written)
    if getattr(args, "verbose", False):
        for record in content.records:
            if record.failure and record.failure.log_tail:
                complain(f"--- {record.cell} on {record.target.backend}: {record.state}\n{record.failure.log_tail}")


def _summary(content: Content, written: dict[str, Path]) -> dict[str, Any]:
    """What `--json` prints at the end of a run."""
    return {
        "event": "summary",
        "spec": content.experiment.name,
        "trials": [
            {
                "key": r.key,
                "cell": r.cell,
                "backend": r.target.backend,
                "hardware": r.target.hardware,
                "state": str(r.state),
                "result_digest": r.result_digest,
            }
            for r in content.records
        ],
        "verdicts": [
            {
                "expectation": v.expectation,
                "word": str(v.word),
                "passed": v.passed,
                "required": v.required,
                "reason": v.reason,
                "target": str(v.target) if v.target else None,
                "ours": v.ours.value if v.ours else None,
                "kind": str(v.ours.kind) if v.ours else None,
                "unit": v.ours.unit if v.ours else None,
                "published": v.theirs.path if v.theirs else None,
            }
            for v in content.verdicts
        ],
        "report": {name: str(path) for name, path in written.items()},
    }
