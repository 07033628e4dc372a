"""`harness explain`: every value of a spec and where it came from, and what each run key is made of."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import Exit, SpecError
from harness.output import columns, emit, say

if TYPE_CHECKING:
    import argparse


def run(args: argparse.Namespace) -> int:
    """`explain SPEC` shows all, `explain SPEC PATH` one part, `--yaml` the resolved spec."""
    from harness import explain
    from harness.load import load_experiment
    from harness.resolve import resolve

    if args.yaml and (args.json or args.path):
        raise SpecError.single("--yaml prints the whole spec", expected="neither --json nor a path beside it")
    loaded = load_experiment(Path(args.specs[0]), args.set)
    if args.yaml:
        say(explain.to_yaml(loaded).rstrip())
        return int(Exit.OK)
    rows = explain.explain(loaded, args.path)
    trials = [] if args.path else resolve(loaded, on=args.on)
    if args.json:
        emit(
            {
                "values": [{"path": row.path, "value": row.value, "origin": row.origin} for row in rows],
                "keys": [
                    {"key": t.key, "cell": t.cell, "backend": t.target.backend, "parts": t.key_parts} for t in trials
                ],
            }
        )
        return int(Exit.OK)
    # A value asked for by its own path is wanted whole.
    shown = str if len(rows) == 1 else explain.shortened
    say(columns([(row.path, shown(row.value), row.origin) for row in rows], indent=""))
    for trial in trials:
        say(f"\nrun key {trial.key}\n  cell {trial.cell}, {trial.target.backend} on {trial.target.hardware}; made of")
        say(columns([(name, explain.shortened(value)) for name, value in explain.key_rows(trial)], indent="    "))
    return int(Exit.OK)
