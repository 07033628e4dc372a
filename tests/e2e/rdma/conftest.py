"""Both ranks of a run as processes: enough of a harness to run the engine for real."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.api import Plan

RANK = Path(__file__).with_name("rank.py")


@dataclass
class Outcome:
    measurements: list
    errors: dict
    """Rank -> message of the HarnessError it ended with, or empty."""
    output: str
    """What both ranks wrote to stdout and stderr."""

    def values(self, name, **labels):
        found = [m["values"] for m in self.measurements if m["name"] == name and m["labels"] == labels]
        assert len(found) == 1, f"{name} {labels}: {found}\n{self.errors}\n{self.output}"
        return found[0]


@dataclass
class Pair:
    """The two processes of a run under way."""

    scratch: Path
    processes: list

    def finish(self, timeout=60.0):
        output = "".join(process.communicate(timeout=timeout)[0] for process in self.processes)
        path = self.scratch / "result0.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        errors = {rank: self._error(rank) for rank in (0, 1)}
        return Outcome([json.loads(line) for line in lines], errors, output)

    def _error(self, rank):
        path = self.scratch / f"error{rank}"
        return path.read_text() if path.exists() else ""


@pytest.fixture
def plan_of():
    """Makes a plan; `tensors` maps a payload's name to its (name, shape, dtype) rows."""

    def make(transports, tensors, *, placement="static", signal="auto"):
        payloads = [
            {"name": name, "tensors": [{"name": n, "shape": list(s), "dtype": d} for n, s, d in rows]}
            for name, rows in tensors.items()
        ]
        how = {"placement": placement, "signal": signal, "allocator": "retain"}
        return Plan({"transports": list(transports), "payloads": payloads, **how})

    return make


@pytest.fixture
def launch(tmp_path):
    """Starts both ranks of a plan; whatever still runs at the end of the test is killed."""
    started = []

    def start(plan, *, warmup=1, runs=2, seed=3, sabotage=None, timeout=20.0, provider="auto"):
        for rank in (0, 1):
            order = {
                "plan": dict(plan.payload),
                "rank": rank,
                "scratch": str(tmp_path),
                "repeat": {"warmup": warmup, "runs": runs, "seed": seed},
                "sabotage": (sabotage or {}).get(rank, {}),
                "timeout": timeout,
                "provider": provider,
            }
            command = [sys.executable, "-W", "error", str(RANK), json.dumps(order)]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            started.append(process)
        return Pair(tmp_path, started[-2:])

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stdout.close()
