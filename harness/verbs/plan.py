"""`harness plan`: what an engine would do with each cell of a spec; nothing is executed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import Exit
from harness.output import emit, say

if TYPE_CHECKING:
    import argparse


def run(args: argparse.Namespace) -> int:
    """Plan every trial in this process and print digest and payload; equal plans are printed once."""
    import json

    from harness.load import load_experiment
    from harness.planning import plan
    from harness.resolve import resolve

    shown: dict[str, dict[str, object]] = {}
    for trial in resolve(load_experiment(Path(args.specs[0]), args.set), on=args.on):
        made = plan(trial)
        one = shown.setdefault(made.digest, {"digest": made.digest, "trials": [], "plan": made.payload})
        trials = one["trials"]
        assert isinstance(trials, list)
        trials.append(f"{trial.cell} on {trial.target.backend}, {trial.target.hardware}")
    if args.json:
        emit(list(shown.values()))
        return int(Exit.OK)
    for one in shown.values():
        say(f"plan {one['digest']}")
        for name in one["trials"]:  # type: ignore[attr-defined]
            say(f"  {name}")
        say(json.dumps(one["plan"], indent=2, ensure_ascii=False))
    return int(Exit.OK)
