"""`harness compare`: two runs side by side, or predictions held against measurements."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from harness.errors import Exit, SpecError
from harness.output import columns, emit, say
from harness.verbs import stores

if TYPE_CHECKING:
    import argparse


def run(args: argparse.Namespace) -> int:
    """Score predictions with `--predictions`; else show where two runs differ."""
    if args.predictions:
        return _predictions(args)
    if len(args.runs) != 2:
        raise SpecError.single(f"{len(args.runs)} runs named", expected="two, or --predictions")
    from harness.judging.differences import between

    found = between(*(stores.several(args, name) for name in args.runs))
    if args.json:
        emit([{**asdict(d), "word": d.word} for d in found])
        return int(Exit.OK)
    from emulation.units import render

    def text(value: float | None, unit: str) -> str:
        return "" if value is None else render(value, unit)

    rows = [(d.metric, d.place, text(d.left, d.unit), text(d.right, d.unit), text(d.ratio, "x"), d.word) for d in found]
    say(columns([("metric", "where", "first", "second", "ratio", ""), *rows], indent=""))
    return int(Exit.OK)


def _predictions(args: argparse.Namespace) -> int:
    from harness.judging import predictions

    names = args.runs or [""]
    records = [r for name in names for r in (stores.several(args, name) if name else stores.opened(args).records())]
    score = predictions.score(records)
    if args.json:
        emit(_scored(score))
        return int(Exit.OK)
    if score.families:
        head = (
            "engine",
            "metric",
            "hardware",
            "model",
            "pairs",
            "bias",
            "MAPE",
            "median",
            "p90",
            "worst",
            "tau",
            "regret",
            "band covers",
        )
        say(columns([head, *(_row(f) for f in score.families)], indent=""))
    for unscored in score.unscored:
        say(f"not scored: {unscored.prediction.name}: {unscored.reason}")
    if not score.families and not score.unscored:
        say("no emulated values have been recorded")
    return int(Exit.OK)


def _row(family: Any) -> tuple[str, ...]:
    from harness.judging.scores import cells

    return (family.engine, family.metric, family.hardware, family.model_version, str(len(family.pairs)), *cells(family))


def _scored(score: Any) -> dict[str, Any]:
    return {
        "families": [
            {
                **{k: getattr(f, k) for k in ("engine", "metric", "hardware", "model_version", "bias", "mape")},
                **{k: getattr(f, k) for k in ("median", "p90", "worst", "tau", "regret", "coverage")},
                "pairs": [
                    {"prediction": asdict(p.prediction), "measured": p.measured, "error": p.error} for p in f.pairs
                ],
            }
            for f in score.families
        ],
        "unscored": [{"prediction": u.prediction.name, "reason": u.reason} for u in score.unscored],
    }
