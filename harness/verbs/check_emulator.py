"""`harness check-emulator`: the emulator's errors on measurements it was not fitted to."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import project
from harness.errors import EnvironmentLacks, Exit, HarnessError, SpecError, nearest
from harness.output import columns, emit, say

if TYPE_CHECKING:
    import argparse

    from emulation.validation.check import Report

VARIABLE = "HARNESS_DATA"


def run(args: argparse.Namespace) -> int:
    """Score each data set, print the table, and compare with the scores on record (or replace them).

    Raises:
        EnvironmentLacks: there are no data here.
        SpecError: a name, a folder or a number that cannot be.
    """
    from emulation.validation import check

    _check_arguments(args)
    folder = data_folder(args.data)
    held_out = _folder(args.held_out, "--held-out") if args.held_out else None
    try:
        report = check.check(folder, seeds=range(args.seeds), held_out=held_out, names=args.names)
    except ValueError as error:
        raise HarnessError(str(error)) from error
    if not report.lines:
        raise EnvironmentLacks(f"{held_out or folder} has no rows to score of {', '.join(report.absent) or 'any set'}")
    if args.update:
        record().write_text(json.dumps(report.document(), indent=1) + "\n", encoding="utf-8")
    before = _before() if not (held_out or args.update) else None
    worse = check.worsened(report, _asked(before, args.names)) if before else []
    if args.json:
        emit(report.document() | {"worse": worse})
    else:
        _show(report, folder, held_out)
        _verdict(report, before, worse)
    return int(Exit.FAILED if worse else Exit.OK)


def record() -> Path:
    """The file of the scores on record."""
    return project.root() / "results" / "measured" / "emulator-check.json"


def data_folder(named: str = "") -> Path:
    """Where the data sets lie: as named, as the environment says, or beside the project.

    Raises:
        SpecError: the folder that was named is none.
        EnvironmentLacks: none was named and none is there.
    """
    if named:
        return _folder(named, "--data")
    if os.environ.get(VARIABLE):
        return _folder(os.environ[VARIABLE], VARIABLE)
    beside = project.root().parent / "shared" / "data"
    if not beside.is_dir():
        raise EnvironmentLacks(f"no measurements to score against: name their folder with --data or {VARIABLE}")
    return beside


def _folder(name: str, where: str) -> Path:
    if not Path(name).is_dir():
        raise SpecError.single(f"{where}: {name!r} is no folder", expected="a folder of data sets")
    return Path(name)


def _check_arguments(args: argparse.Namespace) -> None:
    from emulation.validation import DATA_SETS

    for name in args.names:
        if name not in DATA_SETS:
            raise SpecError.single(
                f"no data set {name!r}", expected=f"one of: {', '.join(DATA_SETS)}", suggestion=nearest(name, DATA_SETS)
            )
    if args.seeds < 1:
        raise SpecError.single(f"--seeds {args.seeds}", expected="at least 1")
    if args.update and (args.held_out or args.names):
        raise SpecError.single("--update with --held-out or a data set", expected="--update alone: it keeps all scores")


def _before() -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(record().read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except json.JSONDecodeError as error:
        raise HarnessError(f"{record()}:{error.lineno}: {error.msg}; --update writes it anew") from error
    return found


def _asked(before: dict[str, Any], names: list[str]) -> dict[str, Any]:
    return before | {"lines": [line for line in before["lines"] if not names or line["data"] in names]}


def _show(report: Report, folder: Path, held_out: Path | None) -> None:
    from harness.judging.scores import cells

    say(f"emulator version {report.model_version}; fitted to and scored on measured rows of {folder}")
    if held_out:
        say(f"fitted to all of them; scored on rows of {held_out} that are not among them")
    else:
        say(f"random splits of each family by seeds {', '.join(map(str, report.seeds))}, scored together")
    say("no parameter is tuned on the rows it is scored on")
    heads = ("", "fit", "pairs", "bias", "MAPE", "median", "p90", "worst", "tau", "regret", "in 80 % band")
    for data, split in dict.fromkeys((line.data, line.split) for line in report.lines):
        say(f"\n{data}: {split}")
        lines = [line for line in report.lines if (line.data, line.split) == (data, split)]
        rows = [(line.label, str(line.fitted), str(line.score.count), *cells(line.score)) for line in lines]
        say(columns([heads, *rows]))
        refused = next((line.refused for line in lines if line.label == "all"), 0)
        if refused:
            say(f"  {refused} rows were not predicted: the model only fits such rows, or says nothing of them")
    for name in report.absent:
        say(f"\n{name}: not scored, its files are not there")


def _verdict(report: Report, before: dict[str, Any] | None, worse: list[str]) -> None:
    from emulation.validation.check import not_compared

    if before is None:
        return
    say("")
    for name in not_compared(report, before):
        say(f"{name}: other rows or seeds than those on record, so not compared")
    for sentence in worse:
        say(f"worse: {sentence}")
    if not worse and len(not_compared(report, before)) < len(report.digests):
        say(f"nothing is worse than the scores on record (emulator version {before['model_version']})")
