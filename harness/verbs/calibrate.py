"""`harness calibrate`: measure this machine, and write its hardware profile with the raw samples beside it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import Exit, HarnessError, SpecError
from harness.output import columns, complain, emit, say

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from emulation.calibrate.measure import Measurement, Probe

DEFAULT_NAME = "this-machine"
NAME = r"[a-z0-9][a-z0-9._-]{0,60}"
"""What `emulation.profile.Profile` takes for a name."""


def run(args: argparse.Namespace) -> int:
    """Measure, fit and write; 1 where a probe failed, as what it should have measured is missing."""
    from emulation.calibrate import describe
    from emulation.calibrate.measure import UnknownProbe, measure

    target = _target(args.to, args.name)
    try:
        with _Line(quiet=args.json) as progress:
            found = measure(_words(args.only), quick=args.quick, progress=progress)
    except UnknownProbe as error:
        raise SpecError.single(str(error), suggestion=error.suggestion) from error
    written = _samples(target)
    try:
        made, raw = describe.document(found, target.stem, file=written.name)
    except describe.NotEnough as error:
        made, raw = {}, _raw(found)
        complain(f"no profile is written: {error}")
    _write(written, raw)
    if made:
        _write(target, describe.to_yaml(made).encode())
    _report(found, made, target, written, as_json=args.json)
    return int(Exit.FAILED if found.failed else Exit.OK)


def _target(to: str, name: str) -> Path:
    """Where the profile goes; its name is that of its file.

    Raises:
        SpecError: not a YAML file, or a name that no profile can have or that is not the file's.
    """
    from harness import project

    target = Path(to) if to else project.hardware() / f"{name or DEFAULT_NAME}.yaml"
    if target.suffix != ".yaml":
        raise SpecError.single(f"--to {to}: a profile is a YAML file", suggestion=str(target.with_suffix(".yaml")))
    if name and target.stem != name:
        raise SpecError.single(
            f"--to {to}: the file of a profile has its name", suggestion=str(target.with_name(f"{name}.yaml"))
        )
    if not re.fullmatch(NAME, target.stem):
        raise SpecError.single(f"{target.stem!r} cannot name a profile", expected="lower-case letters, digits, . _ -")
    if not target.parent.is_dir():
        raise SpecError.single(f"--to {to}: there is no folder {target.parent}")
    return target


def _samples(target: Path) -> Path:
    return target.with_name(f"{target.stem}.calibration.json")


def _words(only: Sequence[str]) -> list[str]:
    """Probes of `--only memcpy,gloo --only rpc`."""
    return [word for text in only for word in text.split(",") if word]


def _raw(found: Measurement) -> bytes:
    from emulation.calibrate.measure import dump

    return dump(found.to_json())


def _write(path: Path, content: bytes) -> None:
    """The whole file or none of it."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise HarnessError(f"cannot write {path}: {error.strerror or error}") from error


def _report(found: Measurement, made: dict[str, Any], target: Path, samples: Path, *, as_json: bool) -> None:
    from emulation.calibrate.measure import digest

    drifted = sum(series.drifted for series in found.series)
    if as_json:
        emit(
            {
                "profile": str(target) if made else None,
                "samples": str(samples),
                "digest": digest(samples.read_bytes()),
                "seconds": found.seconds,
                "skipped": found.skipped,
                "cases": len(found.series),
                "drifted": drifted,
                "load_average": found.machine["load_average"],
                "residuals": made.get("residuals", []),
            }
        )
        return
    rows = [(name, f"{len(found.of(name))} cases", f"{seconds:.1f} s") for name, seconds in found.seconds.items()]
    say(columns(rows))
    for name, why in found.skipped.items():
        say(f"  {name}: left out: {why}")
    if drifted:
        say(f"  {drifted} of {len(found.series)} cases drifted by more than 5 % while they were measured;")
        say(
            f"  load average {found.machine['load_average'][0]:.2f} before. Calibrate a machine that does nothing else."
        )
    say(f"samples: {samples}")
    if made:
        say(f"profile: {target}")


class _Line:
    """One line on a terminal that says which probe runs; nothing elsewhere."""

    def __init__(self, *, quiet: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        console = Console(stderr=True, quiet=quiet)
        parts = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        self._progress = Progress(*parts, console=console, transient=True, disable=quiet or not console.is_terminal)
        self._task = self._progress.add_task("calibrating", total=None)

    def __enter__(self) -> Callable[[Probe, int, int], None]:
        self._progress.start()
        return self._show

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def _show(self, probe: Probe, number: int, count: int) -> None:
        self._progress.update(self._task, description=f"{probe.name}: {probe.about}", completed=number, total=count)
