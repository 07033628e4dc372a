"""Faults of a spec, from the command line to the record."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SPEC = """\
schema: 1
name: faults
engine: {{name: rdma, transports: [zero-copy], sizes: [64 MiB]}}
on: {{backend: emulated, hardware: rdma-100g-pair}}
repeat: {{warmup: 0, runs: 1}}
faults: [{fault}]
"""


def harness(*arguments):
    command = [sys.executable, "-m", "harness", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=dict(os.environ), cwd=ROOT, check=False)


def records(runs):
    return [json.loads(path.read_text()) for path in sorted(runs.glob("**/record.json"))]


@pytest.fixture
def run(tmp_path):
    def go(fault, *arguments):
        place = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        place.mkdir()
        (place / "faults.yaml").write_text(SPEC.format(fault=fault))
        done = harness("run", place / "faults.yaml", "--out", place / "runs", "--no-report", *arguments)
        (record,) = records(place / "runs")
        return done, record

    return go


def test_the_shipped_spec_of_faults_keeps_what_it_expects(tmp_path):
    done = harness("run", "specs/rdma/faults.yaml", "--out", tmp_path / "runs", "--no-report")
    assert done.returncode == 0, done.stdout + done.stderr
    found = {record["cell"]: record for record in records(tmp_path / "runs")}
    assert len(found) == 6
    assert found["faults=deadhost"]["emulation"]["outcome"] == "restarted"
    assert found["faults=deadhost"]["emulation"]["lost"] == pytest.approx(3 * (0.004 + 0.01 + 2))
    clean = found["faults=none"]["values"]
    assert found["faults=none"]["emulation"]["outcome"] == "completed"
    slow = found["faults=slow-link"]["values"]
    assert [v["samples"] for v in clean if v["name"] == "step_time"] < [
        v["samples"] for v in slow if v["name"] == "step_time"
    ]


def test_a_fault_that_changes_nothing_gives_the_clean_values(run):
    _, clean = run("")
    _, none = run("{kind: loss, link: rdma, p: 0}")
    assert none["values"] == clean["values"]


def test_what_cannot_be_injected_is_unsupported_and_says_so(run):
    done, record = run("{kind: slow-link, link: rdma, factor: 0.5}", "--on", "local")
    assert done.returncode == 3
    assert record["state"] == "unsupported"
    assert record["failure"]["message"] == "faults: needs slow-link, which only an emulated cluster can be given"


def test_a_run_that_is_aborted_is_a_failed_trial_with_the_reason(run):
    done, record = run("{kind: node-death, host: host1, at: 1 ms, detection: 3 ms}")
    assert done.returncode == 1
    assert record["state"] == "failed"
    assert record["failure"]["type"] == "Aborted"
    assert "aborted at 4 ms" in record["failure"]["message"]
    assert "host1 died at 1 ms" in record["failure"]["message"]
    assert "step_time" not in {value["name"] for value in record["values"]}


def test_goodput_stands_in_the_record(run):
    _, record = run("{kind: mtbf, host: 1 d, checkpoint_cost: 1 min, restart_cost: 5 min, job: 30 d}")
    assert 0.8 < record["emulation"]["goodput"] < 1


def test_auto_emulates_what_this_machine_cannot_be_given(tmp_path):
    spec = tmp_path / "faults.yaml"
    spec.write_text(
        SPEC.format(fault="{kind: loss, link: rdma, p: 0.01}").replace("backend: emulated", "backend: auto")
    )
    done = harness("run", spec, "--out", tmp_path / "runs", "--no-report")
    assert done.returncode == 0, done.stdout + done.stderr
    (record,) = records(tmp_path / "runs")
    assert record["target"]["backend"] == "emulated"
    assert "needs loss" in record["target"]["reason"]
