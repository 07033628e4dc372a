"""Both ranks of one run of the engine, as the harness would start them: every byte verified, transports in turn."""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from harness.measure import summarise

RANK = Path(__file__).parents[2] / "e2e" / "rdma" / "rank.py"
WAIT = 60.0
QUIET = 0.1
"""Share of the processors' time that others may take from a run whose ratios are held to something."""
STEP_TIMES = pytest.StashKey[dict]()


class Outcome:
    """What rank 0 measured, of one payload."""

    def __init__(self, rows, others):
        self._rows = {(row["name"], row["labels"].get("transport")): row["values"] for row in rows}
        self._others = others

    def __contains__(self, transport):
        return ("step_time", transport) in self._rows

    def samples(self, transport, name="step_time"):
        return self._rows[name, transport]

    def medians(self):
        """Transport -> seconds."""
        times = {who: values for (name, who), values in self._rows.items() if name == "step_time"}
        return {who: statistics.median(values) for who, values in times.items()}

    def require_quiet(self):
        """Skip what would hold a ratio to something although other programs took the processors from this one."""
        if self._others > QUIET:
            pytest.skip(f"other programs took {self._others:.0%} of the processors meanwhile; the ratio is only shown")

    def ratio(self, numerator, denominator):
        """How many times longer one transport takes than another: the median over the turns, with its interval.

        Both samples of a turn were taken one after the other, so that what slows the machine slows both.
        """
        pairs = zip(self.samples(numerator), self.samples(denominator), strict=True)
        return summarise([above / below for above, below in pairs])


@pytest.fixture(scope="session")
def run_pair(tmp_path_factory, pytestconfig):
    """Moves one tensor over every transport, and measures; what it took is shown when all tests are done."""
    shown = pytestconfig.stash.setdefault(STEP_TIMES, {})

    def run(transports, label, nbytes, *, warmup=2, runs=11):
        outcome = _run(tmp_path_factory.mktemp("pair"), transports, label, nbytes, warmup=warmup, runs=runs)
        shown.setdefault(label, {}).update(outcome.medians())
        return outcome

    return run


def _run(scratch, transports, label, nbytes, *, warmup, runs):
    payload = {"name": label, "tensors": [{"name": "tensor", "shape": [nbytes], "dtype": "uint8"}]}
    plan = {
        "transports": list(transports), "payloads": [payload],
        "placement": "static", "signal": "auto", "allocator": "retain",
    }  # fmt: skip
    order = {
        "plan": plan, "scratch": str(scratch), "repeat": {"warmup": warmup, "runs": runs, "seed": 0},
        "sabotage": {}, "timeout": WAIT, "provider": "auto",
    }  # fmt: skip
    commands = [[sys.executable, str(RANK), json.dumps({**order, "rank": rank})] for rank in (0, 1)]
    before = _busy() - _own()
    start = psutil.cpu_times()
    started = [subprocess.Popen(c, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for c in commands]
    try:
        output = "".join(process.communicate()[0] for process in started)
    finally:
        for process in started:
            process.kill()
            process.wait()
    others = (_busy() - _own() - before) / max(sum(psutil.cpu_times()[:8]) - sum(start[:8]), 1e-9)
    errors = [path.read_text() for rank in (0, 1) if (path := scratch / f"error{rank}").exists()]
    assert not errors, f"{errors}\n{output}"
    rows = [json.loads(line) for line in (scratch / "result0.jsonl").read_text().splitlines()]
    return Outcome(rows, others)


def _busy():
    """Seconds that the processors have worked, for anybody."""
    times = psutil.cpu_times()
    return sum(times[:8]) - times.idle - times.iowait


def _own():
    """Seconds that this process and its ended children have worked."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def pytest_terminal_summary(terminalreporter, config):
    """Print the step times; pytest-benchmark's own table can only hold what it timed itself."""
    shown = config.stash.get(STEP_TIMES, {})
    if not shown:
        return
    terminalreporter.section("one tensor to another process, median step time in us")
    names = dict.fromkeys(name for times in shown.values() for name in times)
    terminalreporter.write_line("".join(f"{head:>14}" for head in ("", *shown)))
    for name in names:
        cells = (f"{times[name] * 1e6:14.1f}" if name in times else f"{'-':>14}" for times in shown.values())
        terminalreporter.write_line(f"{name:<14}" + "".join(cells))
