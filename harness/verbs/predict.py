"""`harness predict`: a spec on the emulated cluster; the same as `run --on emulated`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.errors import SpecError
from harness.verbs import run as run_verb

if TYPE_CHECKING:
    import argparse


def run(args: argparse.Namespace) -> int:
    """Run on `emulated`, or on the `emulated:PROFILE` given with `--on`."""
    if args.on and not args.on.startswith("emulated"):
        raise SpecError.single(f"predict runs on the emulated cluster, not on {args.on!r}", expected="emulated:PROFILE")
    args.on = args.on or "emulated"
    return run_verb.run(args)
