"""One spec trains on two processes and is predicted, and both are about the same plan."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SPEC = """\
schema: 1
name: training
engine: {name: megatron, model: gpt-tiny, layers: 2, global_batch: 4}
on:
  - {backend: local, hardware: laptop}
  - {backend: emulated, hardware: a100x8-hdr}
repeat: {warmup: 1, runs: 2}
limits: {timeout: 1 min}
sweep:
  list:
    - {engine.pipeline: 2}
    - {engine.tensor: 2}
tables:
  - {rows: plan, value: [step_time, tokens_per_second, loss, bubble_fraction]}
expect:
  - {metric: gradient_error, on: local, at_most: 0.0001}
  - {metric: loss, on: local, equals: 5.545, tolerance: 1 %}
"""


def harness(*arguments):
    command = [sys.executable, "-m", "harness", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


@pytest.mark.timeout(300)
def test_a_plan_trains_and_is_predicted(tmp_path):
    pytest.importorskip("torch")
    (tmp_path / "training.yaml").write_text(SPEC)
    done = harness("run", tmp_path / "training.yaml", "--out", tmp_path / "runs", "--no-report")
    assert done.returncode == 0, done.stdout + done.stderr
    records = [json.loads(path.read_text("utf-8")) for path in (tmp_path / "runs").rglob("record.json")]
    assert (
        sorted((r["target"]["backend"], r["state"]) for r in records)
        == [("emulated", "ok")] * 2 + [("local", "ok")] * 2
    )
    assert len({record["plan_digest"] for record in records}) == 2
    losses = [v["samples"][0] for r in records for v in r["values"] if v["name"] == "loss"]
    assert len(losses) == 2
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_a_plan_that_does_not_divide_is_refused_at_its_line(tmp_path):
    path = tmp_path / "training.yaml"
    path.write_text(SPEC.replace("engine.pipeline: 2", "engine.pipeline: 3"))
    done = harness("validate", path)
    assert done.returncode == 2
    assert "2 layers cannot be divided into 3 equal stages; expected pipeline: 2" in done.stderr
