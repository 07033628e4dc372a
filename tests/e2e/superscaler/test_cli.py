"""A spec through the command line: proven, run on two processes and predicted, and a plan that does not fit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
TINY = """\
schema: 1
name: tiny
engine: {name: superscaler, model: gpt, global_batch: 4, micro_batches: 2}
on:
  - {backend: local, hardware: epyc-2-core-vm}
  - {backend: emulated, hardware: epyc-2-core-vm}
repeat: {warmup: 0, runs: 1}
limits: {timeout: 3 min}
sweep: {grid: {engine.plan: [dp, search]}}
expect: [{metric: difference, on: local, at_most: 1e-5}]
"""
TOO_LARGE = """\
schema: 1
name: large
engine: {name: superscaler, model: gpt, plan: dp, devices: 8, global_batch: 8, micro_batches: 1, verify: none}
on: {backend: emulated, hardware: v100x8-nvlink}
limits: {timeout: 3 min}
sweep:
  list:
    - {engine.size: 13B}
    - {engine.size: ""}
"""
BY_HAND = """\
sweep:
  list:
    - {engine.plan: dp}
    - {engine.plan: search}
    - engine.plan: by-hand
      engine.by_hand:
        stages:
          - {ops: ["*"], devices: [0]}
          - {ops: ["layers.1.*", norm, head, permute, "cross_entropy_loss.*"], devices: [1]}
        order: gpipe
"""


def harness(*arguments):
    command = [sys.executable, "-m", "harness", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def records(folder):
    """The records of a run by (backend, cell), with the directory of each."""
    found = {}
    for path in folder.rglob("record.json"):
        record = json.loads(path.read_text("utf-8"))
        found[record["target"]["backend"], record["cell"]] = record | {"directory": path.parent}
    return found


def artifacts(record):
    """Name to path of what a trial kept."""
    return {Path(kept["path"]).name: record["directory"] / kept["path"] for kept in record["artifacts"]}


def values(record):
    return {value["name"]: value["samples"][0] for value in record["values"]}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The small spec, run: its folder and its records."""
    pytest.importorskip("torch")
    pytest.importorskip("highspy")
    pytest.importorskip("ortools")
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "tiny.yaml").write_text(TINY, "utf-8")
    done = harness("run", folder / "tiny.yaml", "--out", folder / "runs")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, records(folder / "runs")


@pytest.mark.timeout(300)
def test_plans_compute_what_one_device_does_and_send_what_was_predicted(run):
    _, found = run
    assert set(found) == {(backend, f"plan={plan}") for backend in ("local", "emulated") for plan in ("dp", "search")}
    for plan in ("dp", "search"):
        measured, emulated = found["local", f"plan={plan}"], found["emulated", f"plan={plan}"]
        assert measured["plan_digest"] == emulated["plan_digest"]
        assert values(measured)["difference"] <= 1e-5
        assert values(measured)["sent"] == values(emulated)["sent"] > 0
        assert values(measured)["peak_memory"] <= values(emulated)["peak_memory"]
    losses = {values(found["local", f"plan={plan}"])["loss"] for plan in ("dp", "search")}
    assert max(losses) == pytest.approx(min(losses), rel=1e-6)
    assert values(found["emulated", "plan=search"])["step_time"] <= values(found["emulated", "plan=dp"])["step_time"]


def test_trials_keep_the_proof_the_picture_and_the_reasons(run):
    _, found = run
    for record in found.values():
        proof = artifacts(record)["verification.txt"].read_text("utf-8")
        assert "verified up to L2: 2 ranks" in proof
        assert "L3 the model itself in float64 for 2 steps: largest difference" in proof
    for plan in ("dp", "search"):
        kept = artifacts(found["emulated", f"plan={plan}"])
        assert "device 1" in kept["plan.svg"].read_text("utf-8")
        assert "device 1" in kept["plan.txt"].read_text("utf-8")
        assert any(
            event["ph"] == "X" for event in json.loads(kept["plan.trace.json"].read_text("utf-8"))["traceEvents"]
        )
        assert ("why.txt" in kept) == (plan == "search")
    why = artifacts(found["emulated", "plan=search"])["why.txt"].read_text("utf-8")
    assert "a step" in why
    assert "slower" in why


def test_the_page_shows_the_picture_and_the_reasons(run):
    folder, _ = run
    (page,) = (folder / "runs").rglob("index.html")
    text = page.read_text("utf-8")
    assert "plan=search plan.svg" in text
    assert text.count("attached-0-") > 10
    assert "plan=search why.txt" in text
    assert "Searched for" in text


@pytest.mark.timeout(300)
def test_the_same_spec_gives_the_same_plans_in_every_process(run):
    folder, found = run
    spec = folder / "plans.yaml"
    spec.write_text(TINY[: TINY.index("sweep:")] + BY_HAND, "utf-8")
    command = [sys.executable, "-m", "harness", "plan", str(spec)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(2)]
    first, second = (process.communicate()[0] for process in both)
    assert [process.returncode for process in both] == [0, 0]
    assert first == second
    digests = [line.split()[1] for line in first.splitlines() if line.startswith("plan ")]
    # Trials plan anew, each in a process of its own.
    assert digests[:2] == [found["local", f"plan={plan}"]["plan_digest"] for plan in ("dp", "search")]
    by_hand = json.loads(first[first.rindex("\n{\n") :])["plan"]
    assert [stage["devices"] for stage in by_hand["stages"]] == [[0], [1]]
    assert by_hand["stages"][1]["ops"][0] == "layers.1.attention_norm"
    assert [block for block in by_hand["order"] if block[0] == 0] == [
        [0, 0, "F"],
        [0, 1, "F"],
        [0, 0, "B"],
        [0, 1, "B"],
    ]


@pytest.mark.timeout(300)
def test_a_plan_that_does_not_fit_says_what_lacks_and_leaves_the_others(tmp_path):
    pytest.importorskip("torch")
    (tmp_path / "large.yaml").write_text(TOO_LARGE, "utf-8")
    done = harness("run", tmp_path / "large.yaml", "--out", tmp_path / "runs", "--no-report")
    assert done.returncode == 1, done.stdout + done.stderr
    by_state = {record["state"]: record for record in records(tmp_path / "runs").values()}
    assert set(by_state) == {"ok", "failed"}
    failure = by_state["failed"]["failure"]
    assert failure["type"] == "PlanError"
    assert failure["message"].startswith("stage 0 (embedding to head) needs ")
    assert "GiB too much" in failure["message"]
    assert "ZeRO-1" in failure["message"]
    assert values(by_state["ok"])["step_time"] > 0
