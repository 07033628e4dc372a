"""`harness status`: what of a spec is done, what is missing, and what is left over from an earlier version of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import Exit
from harness.output import columns, emit, say
from harness.verbs import stores

if TYPE_CHECKING:
    import argparse


def run(args: argparse.Namespace) -> int:
    """One line a trial, then one a record that the spec no longer asks for, with the fields that differ."""
    from harness.judging.leftovers import leftovers
    from harness.load import load_experiment
    from harness.resolve import resolve

    loaded = load_experiment(Path(args.specs[0]), args.set)
    trials = resolve(loaded, on=args.on)
    store = stores.opened(args)
    rows = []
    for trial in trials:
        record = store.find(trial)
        state = str(record.state) if record else "missing"
        rows.append((trial.key[:12], trial.cell, trial.target.backend, trial.target.hardware, state))
    left = leftovers(store.records(loaded.experiment.name), resolve(loaded))
    if args.json:
        names = ("key", "cell", "backend", "hardware", "state")
        emit(
            {
                "trials": [dict(zip(names, row, strict=True)) for row in rows],
                "left_over": [{"key": o.record.key, "cell": o.record.cell, "differs": o.differs} for o in left],
            }
        )
        return int(Exit.OK)
    say(columns([("key", "cell", "backend", "hardware", "state"), *rows], indent=""))
    if left:
        say("\nleft over (the spec has changed since):")
        say(columns([(o.record.key[:12], o.record.cell, "; ".join(o.differs)) for o in left]))
    return int(Exit.OK)
