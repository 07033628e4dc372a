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
    from harness.load import load_with_others
    from harness.resolve import resolve

    problems: list[Problem] = []
    good = []
    for name in args.specs:
        try:
            loaded = [(str(one.path), resolve(one, on=args.on)) for one in load_with_others(Path(name), args.set)]
        except SpecError as error:
            problems.extend(error.problems)
            if not args.json:
                complain(str(error))
        else:
            good += [{"spec": path, "trials": len(trials)} for path, trials in loaded]
            for path, trials in loaded if not args.json else ():
                say(f"{path}: ok, {len(trials)} trial{'s' if len(trials) != 1 else ''}")
    if args.json and problems:
        raise SpecError(problems)
    if args.json:
        emit({"valid": good})
    return int(Exit.BAD_SPEC if problems else Exit.OK)
