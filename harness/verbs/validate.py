"""`harness validate`: everything `run` would refuse, found by the same code, and nothing run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import Exit, SpecError
from harness.output import complain, emit, say

if TYPE_CHECKING:
    import argparse

    from harness.errors import Problem


def run(args: argparse.Namespace) -> int:
    """Check every spec named and say how many trials each has; 2 if any has a mistake."""
    from harness.load import load_experiment
    from harness.resolve import resolve

    problems: list[Problem] = []
    good = []
    for name in args.specs:
        try:
            trials = resolve(load_experiment(Path(name), args.set), on=args.on)
        except SpecError as error:
            problems.extend(error.problems)
            if not args.json:
                complain(str(error))
        else:
            good.append({"spec": name, "trials": len(trials)})
            if not args.json:
                say(f"{name}: ok, {len(trials)} trial{'s' if len(trials) != 1 else ''}")
    if args.json and problems:
        raise SpecError(problems)
    if args.json:
        emit({"valid": good})
    return int(Exit.BAD_SPEC if problems else Exit.OK)
