"""`harness show`: one record as kept, or the trials a spec resolves to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import Exit
from harness.output import columns, emit, say

if TYPE_CHECKING:
    import argparse

    from harness.records import Record


def run(args: argparse.Namespace) -> int:
    """A `.yaml` file is resolved; anything else names a record."""
    return _trials(args) if args.record.endswith((".yaml", ".yml")) else _record(args)


def _trials(args: argparse.Namespace) -> int:
    from harness.load import load_experiment
    from harness.resolve import resolve

    trials = resolve(load_experiment(Path(args.record), []))
    if args.json:
        emit(
            [
                {
                    "key": t.key,
                    "cell": t.cell,
                    "swept": t.swept,
                    "target": t.target.model_dump(mode="json"),
                    "resolved": t.resolved,
                }
                for t in trials
            ]
        )
    else:
        rows = [(t.key[:12], t.cell, t.target.backend, t.target.hardware, t.target.reason) for t in trials]
        say(columns([("key", "cell", "backend", "hardware", ""), *rows], indent=""))
    return int(Exit.OK)


def _record(args: argparse.Namespace) -> int:
    from harness.verbs import stores

    found = stores.find(args, args.record)
    if args.json:
        emit(found.model_dump(mode="json"))
    else:
        say(_text(found))
    return int(Exit.OK)


def _text(record: Record) -> str:
    from emulation.units import render
    from harness.judging.observations import observe

    facts = [
        ("key", record.key),
        ("spec", f"{record.spec}, cell {record.cell}"),
        ("target", f"{record.target.backend} on {record.target.hardware}"),
        ("engine", f"{record.engine} {record.engine_version}"),
        ("plan", record.plan_digest or "none"),
        ("state", str(record.state)),
        ("started", f"{record.started}, took {record.seconds:.2f} s, attempts {len(record.attempts)}"),
        ("result", record.result_digest),
    ]
    if record.failure:
        facts.append(("failure", f"{record.failure.type}: {record.failure.message} ({record.failure.where})"))
    values = [
        (
            o.metric,
            " ".join(f"{k}={v}" for k, v in o.labels.items()),
            str(o.kind),
            render(o.figure.value, o.unit),
            f"[{render(o.figure.low, o.unit)}, {render(o.figure.high, o.unit)}]",
            f"n={o.figure.n}",
        )
        for o in observe([record])
    ]
    return "\n".join([columns(facts, indent=""), "", columns(values)]).rstrip()
