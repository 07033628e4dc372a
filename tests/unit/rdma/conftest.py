"""Two processes and a file-based rendezvous: enough of a harness to run the engine's ranks for real."""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
import traceback
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from harness.api import Plan, Repeat

POLL = 0.002


class FileRendezvous:
    """Keys are files; a rename makes each appear whole."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def set(self, key, value):
        path = self._directory / key.replace("/", "%")
        draft = path.with_suffix(".draft")
        draft.write_text(value)
        draft.rename(path)

    def get(self, key, timeout=30.0):
        path = self._directory / key.replace("/", "%")
        deadline = time.monotonic() + timeout
        while not path.exists():
            if time.monotonic() > deadline:
                raise TimeoutError(key)
            time.sleep(POLL)
        return path.read_text()


@dataclass
class FakeContext:
    rank: int
    scratch: Path
    repeat: Repeat = field(default_factory=lambda: Repeat(warmup=1, runs=2, seed=3))
    world_size: int = 2

    @property
    def rendezvous(self):
        return FileRendezvous(self.scratch)

    def sample(self, action, *, warmup=None, runs=None):
        times = []
        for _ in range(runs):
            start = time.perf_counter()
            action()
            times.append(time.perf_counter() - start)
        return times

    @contextmanager
    def span(self, name, stream="main", **args):
        yield


def plan_of(*, transports, tensors, allocator="retain"):
    """A plan of one payload per entry of `tensors` (name -> list of (name, shape, dtype))."""
    payloads = [
        {"name": name, "tensors": [{"name": n, "shape": list(s), "dtype": d} for n, s, d in rows]}
        for name, rows in tensors.items()
    ]
    return Plan({"transports": list(transports), "payloads": payloads, "allocator": allocator})


def rank_main(payload, rank, scratch, repeat, sabotage, timeout):
    """Body of a rank's process: what it measured, or the error it ended with, as JSON lines."""
    from dataclasses import replace

    from engines.rdma import worker

    result = Path(scratch) / f"result{rank}.jsonl"
    context = FakeContext(rank, Path(scratch), Repeat(**repeat))
    try:
        if sabotage and sabotage.__name__.endswith(f"_rank{rank}"):
            sabotage(Path(scratch))
        job = replace(worker.Job.from_plan(Plan(payload)), timeout=timeout)
        with result.open("w") as out:
            for m in worker.run(job, context):
                out.write(json.dumps({"name": m.name, "values": list(m.values()), "labels": dict(m.labels)}) + "\n")
    except Exception as error:
        (Path(scratch) / f"error{rank}").write_text(f"{type(error).__name__}: {error}")
        (Path(scratch) / f"traceback{rank}").write_text(traceback.format_exc())
        sys.exit(1)


@dataclass
class Outcome:
    measurements: list
    errors: dict

    def values(self, name, **labels):
        found = [m["values"] for m in self.measurements if m["name"] == name and labels.items() <= m["labels"].items()]
        assert len(found) == 1, f"{name} {labels}: {found}"
        return found[0]


@dataclass
class Pair:
    """The two processes of a run under way."""

    scratch: Path
    processes: list

    def finish(self, timeout=60.0):
        for process in self.processes:
            process.join(timeout)
            if process.is_alive():
                process.kill()
                process.join()
                raise AssertionError(f"rank {self.processes.index(process)} did not end within {timeout} s")
        path = self.scratch / "result0.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        errors = {rank: self._error(rank) for rank in (0, 1)}
        return Outcome([json.loads(line) for line in lines], errors)

    def _error(self, rank):
        path = self.scratch / f"error{rank}"
        return path.read_text() if path.exists() else ""


@pytest.fixture
def launch(tmp_path):
    """Start both ranks of a plan; whatever still runs at the end of the test is killed."""
    context = multiprocessing.get_context("spawn")
    started = []

    def start(plan, *, warmup=1, runs=2, seed=3, sabotage=None, timeout=20.0):
        repeat = {"warmup": warmup, "runs": runs, "seed": seed}
        for rank in (0, 1):
            args = (dict(plan.payload), rank, str(tmp_path), repeat, sabotage, timeout)
            process = context.Process(target=rank_main, args=args)
            process.start()
            started.append(process)
        return Pair(tmp_path, started[-2:])

    yield start
    for process in started:
        if process.is_alive():
            process.kill()
        process.join()
        process.close()
