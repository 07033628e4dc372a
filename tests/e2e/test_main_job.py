"""The main job from outside: one spec file, three backends, and what the exit code says."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SPEC = """\
schema: 1
name: small
engine: {name: rdma, transports: [zero-copy, tcp], sizes: [64 KiB, 1 MiB]}
on: {backend: local, hardware: laptop}
repeat: {warmup: 1, runs: 3}
limits: {timeout: 1 min}
tables:
  - {rows: transport, columns: payload, value: step_time, baseline: {transport: tcp}}
expect:
  - {metric: step_time, where: {transport: zero-copy}, at_most: 10 s}
"""


@pytest.fixture
def spec(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(SPEC)
    return path


def harness(*arguments, **environment):
    command = [sys.executable, "-m", "harness", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **environment}, cwd=ROOT, check=False
    )


def records(directory):
    return [json.loads(path.read_text("utf-8")) for path in sorted(directory.rglob("record.json"))]


@pytest.mark.parametrize(
    ("on", "kind"),
    [
        ("local", "measured"),
        ("emulated:rdma-100g-pair", "emulated"),
        pytest.param("ray", "measured", marks=pytest.mark.ray),
    ],
)
def test_the_same_file_runs_on_every_backend(spec, tmp_path, on, kind):
    if on == "ray":
        pytest.importorskip("ray")
    done = harness("run", spec, "--on", on, "--out", tmp_path / "runs", "--no-report")
    assert done.returncode == 0, done.stdout + done.stderr
    (record,) = records(tmp_path / "runs")
    assert record["state"] == "ok"
    assert {value["kind"] for value in record["values"]} == {kind}
    assert {value["labels"].get("transport") for value in record["values"] if value["name"] == "step_time"} == {
        "zero-copy",
        "tcp",
    }
    assert kind in done.stdout


def test_one_plan_stands_behind_the_measured_and_the_emulated_value(spec, tmp_path):
    for on in ("local", "emulated:laptop"):
        assert harness("run", spec, "--on", on, "--out", tmp_path / "runs", "--no-report").returncode == 0
    found = records(tmp_path / "runs")
    assert len({record["plan_digest"] for record in found}) == 1
    scored = json.loads(harness("compare", "--predictions", "--json", "--out", tmp_path / "runs").stdout)
    step_time = next(family for family in scored["families"] if family["metric"] == "step_time")
    assert len(step_time["pairs"]) == 4


def test_an_emulated_run_gives_the_same_bytes_whatever_the_hash_seed(spec, tmp_path):
    exported = []
    for seed in ("0", "1"):
        runs, table = tmp_path / f"runs{seed}", tmp_path / f"{seed}.csv"
        arguments = ("--on", "emulated:rdma-100g-pair", "--out", runs)
        assert harness("run", spec, *arguments, "--no-report", PYTHONHASHSEED=seed).returncode == 0
        assert harness("export", "--to", table, "--out", runs).returncode == 0
        (record,) = records(runs)
        trace = sorted((a["path"], a["sha256"]) for a in record["artifacts"])
        exported.append((table.read_bytes(), record["result_digest"], trace))
    assert exported[0] == exported[1]


def test_the_second_run_does_nothing_and_shows_the_same(spec, tmp_path):
    first = harness("run", spec, "--out", tmp_path / "runs", "--no-report", "--json")
    second = harness("run", spec, "--out", tmp_path / "runs", "--no-report", "--json")
    (record,) = records(tmp_path / "runs")
    assert record["attempts"] == records(tmp_path / "runs")[0]["attempts"]
    digest = f'"result_digest": "{record["result_digest"]}"'
    assert digest in first.stdout
    assert digest in second.stdout


def test_a_missed_expectation_exits_with_1_and_says_by_how_much(spec, tmp_path):
    spec.write_text(SPEC.replace("at_most: 10 s", "at_most: 1 ns"))
    done = harness("run", spec, "--out", tmp_path / "runs", "--no-report", "--junit", tmp_path / "out.xml")
    assert done.returncode == 1
    assert "missed" in done.stdout
    assert "<failure" in (tmp_path / "out.xml").read_text("utf-8")


def test_a_need_that_is_not_there_exits_with_3_and_records_why(spec, tmp_path):
    done = harness("run", spec, "--set", "needs.gpus=64", "--out", tmp_path / "runs", "--no-report")
    assert done.returncode == 3
    (record,) = records(tmp_path / "runs")
    assert record["state"] == "unsupported"
    assert "gpu" in record["failure"]["message"].lower()


def test_a_bad_spec_exits_with_2_before_anything_runs(spec, tmp_path):
    spec.write_text(SPEC.replace("transports:", "transport:"))
    done = harness("run", spec, "--out", tmp_path / "runs")
    assert done.returncode == 2
    assert f"{spec}:3:" in done.stderr
    assert "transports" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_the_whole_report_is_written_where_the_run_says(spec, tmp_path):
    done = harness("run", spec, "--on", "local", "--out", tmp_path / "runs")
    assert done.returncode == 0, done.stderr
    page = tmp_path / "runs" / "small" / "report" / "index.html"
    assert str(page) in done.stdout.replace("\n", "")
    assert "measured" in page.read_text("utf-8")


@pytest.mark.parametrize("path", sorted((ROOT / "specs").rglob("*.yaml")), ids=lambda p: str(p.relative_to(ROOT)))
def test_every_shipped_spec_is_valid(path):
    if path.is_relative_to(ROOT / "specs" / "hardware"):
        from harness.hardware import load_profile

        assert load_profile(path.stem).name == path.stem
    else:
        done = harness("validate", path)
        assert done.returncode == 0, done.stderr
