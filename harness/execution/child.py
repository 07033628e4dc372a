"""What runs in a trial's own process: plan, then predict or run, writing down every measurement as it comes.

The process is expendable. Everything it has to say goes into a journal line by line, so an engine may raise,
overrun its memory, hang or take the interpreter down with it, and what it measured before is kept.
"""

from __future__ import annotations

import os
import re
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import measure, planning
from harness.errors import EnvironmentLacks, HarnessError, StoreError
from harness.execution import journal
from harness.execution.assignment import Assignment

if TYPE_CHECKING:
    from collections.abc import Iterator

    from emulation.profile import Profile
    from harness.api import Measurement, Metric
    from harness.execution.context import PredictionContext, RankContext

EXIT_FAILED = 1
EXIT_JOURNAL = 74
"""The journal could not be written (EX_IOERR): a matter of the store, not of the engine."""
OUT_OF_MEMORY = re.compile(
    r"out of memory|OutOfMemory|std::bad_alloc|can't allocate memory|cannot allocate memory|MemoryError", re.IGNORECASE
)
"""How CUDA, torch, C++ and the C library word it."""


class MeasurementError(HarnessError):
    """An engine yielded something its declared metrics do not allow."""


def carry_out(directory: Path) -> int:
    """Do what the `trial.json` in `directory` says; the journal stands beside it.

    Returns:
        The exit code of the process.
    """
    notes = journal.Journal(directory / journal.FILE)
    assignment = Assignment.read(directory)
    trial = assignment.trial
    sys.path[:0] = [p for p in trial.import_path if p not in sys.path]
    try:
        _attempt(assignment, notes, directory)
    except StoreError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_JOURNAL
    except BaseException as error:
        traceback.print_exc()
        notes.write("failure", **_failure(error, trial.package))
        return EXIT_FAILED
    finally:
        notes.close()
    return 0


def _attempt(assignment: Assignment, notes: journal.Journal, directory: Path) -> None:
    trial = assignment.trial
    notes.write("start", pid=os.getpid())
    spec, engine, profile = planning.prepared(trial)
    plan = engine.plan(spec, profile)
    notes.write("plan", digest=plan.digest)
    metrics = {m.name: m for m in engine.metrics()}
    context = _context(assignment, profile)
    stamp = None
    try:
        action = engine.predict if assignment.mode == "predict" else engine.run
        values = action(plan, context)  # type: ignore[arg-type]
        _keep(values, metrics, notes, assignment)
        stamp = _finish(context)
    finally:
        if assignment.mode == "run":
            context.close(directory)  # type: ignore[union-attr]
        notes.write("circumstances", packages=packages(), peak_memory=measure.peak_memory())
    notes.write("done", emulation=stamp)


def _context(assignment: Assignment, profile: Profile) -> RankContext | PredictionContext:
    from harness.execution import context

    if assignment.mode == "predict":
        return context.PredictionContext(assignment, profile)
    return context.RankContext(assignment, profile)


def _keep(
    values: Iterator[Measurement] | None, metrics: dict[str, Metric], notes: journal.Journal, assignment: Assignment
) -> None:
    kind = "emulated" if assignment.mode == "predict" else "measured"
    # A rank that has nothing to report may be a plain function.
    for measurement in values or ():
        problem = measurement.problem(metrics)
        if problem:
            raise MeasurementError(f"engine {assignment.trial.engine!r}: {problem}")
        metric = metrics[measurement.name]
        notes.write(
            "value",
            name=metric.name,
            labels=dict(measurement.labels),
            unit=metric.unit,
            kind=kind,
            better=str(metric.better),
            samples=measurement.values(),
            band=measurement.band,
            rank=assignment.rank,
        )


def _finish(context: RankContext | PredictionContext) -> dict[str, Any] | None:
    from harness.execution.context import PredictionContext

    if isinstance(context, PredictionContext):
        return context.stamp()
    context.leave()
    return None


def _failure(error: BaseException, package: str) -> dict[str, Any]:
    text = f"{type(error).__name__}: {error}"
    state = "failed"
    if isinstance(error, MemoryError) or OUT_OF_MEMORY.search(text):
        state = "oom"
    elif isinstance(error, EnvironmentLacks):
        state = "unsupported"
    return {
        "state": state,
        "type": type(error).__name__,
        "message": str(error),
        "where": engine_frame(error, package),
    }


def engine_frame(error: BaseException, package: str) -> str:
    """`file:line in function` of the innermost frame that is the engine's own, else of the innermost frame."""
    here = str(Path(__file__).parents[1])
    folder = f"/{package.replace('.', '/')}/"
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if folder in f.filename] or [f for f in frames if not f.filename.startswith(here)]
    if not own:
        return ""
    name = own[-1].filename
    short = name[name.index(folder) + 1 :] if folder in name else name
    return f"{short}:{own[-1].lineno} in {own[-1].name}"


def packages() -> dict[str, str]:
    """Versions of the distributions whose packages this process has imported."""
    from importlib import metadata

    found: dict[str, str] = {}
    names = {n.partition(".")[0] for n in list(sys.modules)} - set(sys.stdlib_module_names) - {"__main__"}
    for name in sorted(n for n in names if not n.startswith("_")):
        version = getattr(sys.modules.get(name), "__version__", None)
        try:
            found[name] = version if isinstance(version, str) else metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def main() -> int:
    """Carry out the assignment in the directory named on the command line, in this process."""
    return carry_out(Path(sys.argv[1]).resolve())


if __name__ == "__main__":
    sys.exit(main())
