"""Run the suite: `python -m engines.rdma.conformance --provider shm`.

Exit code 0: no case failed. 1: one did. 3: the provider is not available here, and nothing was shown.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import engines.rdma.conformance.cases  # noqa: F401 - defines them
from engines.rdma.conformance.case import CAPACITY, CASES, Outcome
from engines.rdma.conformance.pair import Setting
from engines.rdma.device import ProviderUnavailable
from engines.rdma.providers import PROVIDERS

if TYPE_CHECKING:
    from types import FrameType

UNAVAILABLE = 3


def _options(pairs: list[str]) -> dict[str, Any]:
    """`key=value` arguments; a value that reads as JSON is that, any other is text."""
    found: dict[str, Any] = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator:
            raise SystemExit(f"an option is KEY=VALUE, got {pair!r}")
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m engines.rdma.conformance", description=__doc__)
    parser.add_argument("--provider", choices=PROVIDERS, default="shm")
    parser.add_argument("--near", action="append", default=[], metavar="KEY=VALUE", help="option of the first device")
    parser.add_argument("--far", action="append", default=[], metavar="KEY=VALUE", help="option of the second device")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose name contains this")
    parser.add_argument("--limit", type=int, default=60, metavar="SECONDS", help="most that one case may take")
    return parser.parse_args()


def _out_of_time(*_: int | FrameType | None) -> None:
    raise TimeoutError("the case took too long")


def _say(outcome: Outcome, as_json: bool) -> None:
    if as_json:
        line = json.dumps(asdict(outcome))
    else:
        line = f"{outcome.status:7} {outcome.seconds:8.3f} s  {outcome.name}"
        line += f": {outcome.message}" if outcome.message else ""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> int:
    """Run what was asked for."""
    arguments = _arguments()
    setting = Setting(arguments.provider, _options(arguments.near), _options(arguments.far))
    try:
        setting.probe(CAPACITY)
    except ProviderUnavailable as error:
        _say(Outcome(f"open {setting.provider}", "skipped", str(error), 0.0), arguments.json)
        return UNAVAILABLE
    signal.signal(signal.SIGALRM, _out_of_time)
    failed = 0
    for name, case in CASES.items():
        if arguments.only in name:
            signal.alarm(arguments.limit)
            outcome = case.run(setting)
            signal.alarm(0)
            failed += outcome.status == "failed"
            _say(outcome, arguments.json)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
