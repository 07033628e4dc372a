"""What is left when a run is killed, interrupted, or shares its directory with another run."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from harness import index
from harness.export import export
from harness.store import Store

ENGINES = Path(__file__).parents[2] / "unit" / "execution" / "engines"
RUNNER = """
import sys
from pathlib import Path
from fake import trials
from harness.progress import Json
from harness.runner import RunOptions, run
from harness.store import Store

folder, runs, mode, count, backend = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), sys.argv[5]
todo = [trials.make(folder, mode, f"cell{i:02}", backend, seconds=float(i)) for i in range(count)]
ran = run(todo, store=Store(runs), options=RunOptions(grace=1.0), listener=Json(sys.stdout))
sys.exit(130 if ran.interrupted else 0)
"""


@pytest.fixture
def start(tmp_path):
    started = []

    def start(mode="counted", count=12, backend="local", runs="runs", **environment):
        command = [sys.executable, "-c", RUNNER, str(tmp_path), str(tmp_path / runs), mode, str(count), backend]
        path = os.pathsep.join([str(ENGINES), *filter(None, [os.environ.get("PYTHONPATH")])])
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path, **environment},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def finish(process, code=0):
    out, err = process.communicate(timeout=100)
    assert process.returncode == code, err.decode()
    return [json.loads(line) for line in out.splitlines()]


def final(runs):
    return {(e.cell, e.key, e.state, e.plan_digest) for e in Store(runs).list()}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_killed_at_any_instant_is_finished_by_the_same_command(start, tmp_path):
    instants = random.Random(20)
    finish(start("noop", 150, runs="whole"))
    kills = 0
    for _ in range(40):
        process = start("noop", 150, runs="broken")
        assert process.stdout.readline()
        # From the first event on, at any instant: while it forks, writes, renames, or waits.
        time.sleep(instants.uniform(0.0, 0.1))
        kills += process.poll() is None
        process.kill()
        process.communicate()
        if kills == 20:
            break
    assert kills == 20
    finish(start("noop", 150, runs="broken"))
    broken = tmp_path / "broken"
    assert len(final(broken)) == 150
    assert final(broken) == final(tmp_path / "whole")
    assert not list(broken.rglob(".record-*"))
    assert all(json.loads(p.read_bytes())["state"] == "ok" for p in broken.rglob(index.RECORD))
    assert Store(broken).reindex() == 150


def test_the_trial_of_a_killed_run_dies_with_it(start, tmp_path):
    process = start("hangs", 1)
    mark = tmp_path / "hanging"
    wait_for(lambda: mark.exists() and mark.read_text())
    process.kill()
    trial = int(mark.read_text())
    wait_for(lambda: not Path(f"/proc/{trial}").exists())


def test_two_runs_on_one_directory_never_run_a_cell_twice(start, tmp_path):
    processes = [start("counted", 20) for _ in range(2)]
    events = [finish(p) for p in processes]
    assert len((tmp_path / "ran").read_text().splitlines()) == 20
    ended = Counter((e["event"], e["cell"]) for told in events for e in told if e["event"] in {"record", "cached"})
    assert len(ended) == 40
    assert set(ended.values()) == {1}
    assert len(final(tmp_path / "runs")) == 20


def test_the_second_run_takes_over_when_the_first_is_killed(start, tmp_path):
    first = start("hangs_once", 1)
    mark = tmp_path / "hanging"
    wait_for(lambda: mark.exists() and mark.read_text())
    second = start("hangs_once", 1)
    assert json.loads(second.stdout.readline())["event"] == "waiting"
    first.kill()
    assert [e["event"] for e in finish(second)] == ["start", "record"]


def test_the_first_interrupt_ends_the_trial_cleanly_and_records_it(start, tmp_path):
    process = start("hangs", 3)
    wait_for(lambda: (tmp_path / "hanging").exists())
    process.send_signal(signal.SIGINT)
    finish(process, code=130)
    (record,) = Store(tmp_path / "runs").records()
    assert record.state == "cancelled"
    assert len(record.values) == 1


def test_the_second_interrupt_kills(start, tmp_path):
    process = start("hangs_on", 3)
    mark = tmp_path / "hanging"
    wait_for(lambda: mark.exists() and mark.read_text())
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    finish(process, code=130)
    assert not Path(f"/proc/{mark.read_text()}").exists()


def test_emulated_results_do_not_depend_on_the_hash_seed(start, tmp_path):
    pytest.importorskip("pyarrow")
    results = []
    for seed in ("0", "1"):
        finish(start("ok", 5, "emulated", runs=seed, PYTHONHASHSEED=seed))
        records = Store(tmp_path / seed).records()
        for name in ("out.csv", "out.parquet"):
            assert export(records, tmp_path / seed / name) == 5
        files = [(tmp_path / seed / name).read_bytes() for name in ("out.csv", "out.parquet")]
        results.append(([r.result_digest for r in records], files))
    assert results[0] == results[1]
    assert len(set(results[0][0])) == 5


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)
