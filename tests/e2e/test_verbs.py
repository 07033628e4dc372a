"""Every verb from outside, as text and as JSON, on one small emulated spec and one measured run."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness import cli

ROOT = Path(__file__).resolve().parents[2]
SPEC = """\
schema: 1
name: verbs
description: >
  A description that is rather longer than what fits beside an origin on one line of a terminal, because descriptions
  of experiments are.
engine: {name: rdma, transports: [zero-copy, tcp], sizes: [64 KiB]}
on: {backend: emulated, hardware: rdma-100g-pair}
repeat: {warmup: 0, runs: 2}
tables:
  - {rows: transport, columns: payload, value: step_time, baseline: {transport: tcp}}
expect:
  - {metric: step_time, where: {transport: zero-copy}, at_most: 10 s}
"""


def harness(*arguments, **environment):
    command = [sys.executable, "-m", "harness", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **environment}, cwd=ROOT, check=False
    )


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A spec, and a store with its emulated record, a measured one and its report."""
    folder = tmp_path_factory.mktemp("verbs")
    (folder / "verbs.yaml").write_text(SPEC)
    for on in ("emulated:laptop", "local", "emulated"):
        done = harness("run", folder / "verbs.yaml", "--on", on, "--out", folder / "runs", "--no-report")
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture
def spec(recorded):
    return recorded / "verbs.yaml"


@pytest.fixture
def runs(recorded):
    return recorded / "runs"


@pytest.fixture
def call(capsys, monkeypatch):
    """One command line in this process: exit code, standard output, standard error."""
    monkeypatch.chdir(ROOT)

    def calling(*arguments):
        try:
            code = cli.main([str(a) for a in arguments])
        except SystemExit as stop:
            code = stop.code
        said = capsys.readouterr()
        return code, said.out, said.err

    return calling


@pytest.fixture
def told(call):
    """What a command line that succeeds prints with --json."""

    def telling(*arguments):
        code, out, err = call(*arguments, "--json")
        assert code == 0, out + err
        return json.loads(out)

    return telling


def test_plan_shows_each_plan_once_with_the_trials_it_is_for(call, told, spec):
    (plan,) = told("plan", spec)
    assert plan["trials"] == ["default on emulated, rdma-100g-pair"]
    code, out, _ = call("plan", spec)
    assert code == 0
    assert out.startswith(f"plan {plan['digest']}\n")
    assert '"bytes": 65536' in out


def test_explain_names_the_origin_of_every_value(call, told, spec):
    found = told("explain", spec, "--set", "repeat.runs=7")
    values = {row["path"]: row for row in found["values"]}
    assert values["repeat.runs"] == {"path": "repeat.runs", "value": 7, "origin": "--set #1"}
    assert values["engine.sizes.0"]["origin"].startswith(f"{spec}:6:")
    assert values["needs.gpus"]["origin"] == "default"
    assert found["keys"][0]["backend"] == "emulated"
    code, out, _ = call("explain", spec)
    assert code == 0
    assert f"run key {told('explain', spec)['keys'][0]['key']}" in out
    assert ["paper", "''", "default"] in [line.split() for line in out.splitlines()]


def test_explain_cuts_long_values_in_its_table_and_nowhere_else(call, told, spec):
    code, out, _ = call("explain", spec)
    (row,) = [line for line in out.splitlines() if line.startswith("description")]
    assert code == 0
    assert "..." in row
    origin = row.split("...")[1].strip()
    assert origin == f"{spec}:3:14"
    whole = next(r["value"] for r in told("explain", spec)["values"] if r["path"] == "description")
    assert "because descriptions" in whole
    assert "because descriptions" in call("explain", spec, "description")[1]


def test_explain_yaml_loads_again_to_the_same_keys(call, told, spec, tmp_path):
    code, out, _ = call("explain", spec, "--yaml")
    again = tmp_path / "again.yaml"
    again.write_text(out)
    assert code == 0
    assert [k["key"] for k in told("explain", again)["keys"]] == [k["key"] for k in told("explain", spec)["keys"]]


def test_show_of_a_spec_lists_its_trials(call, told, spec):
    (trial,) = told("show", spec)
    code, out, _ = call("show", spec)
    assert code == 0
    assert out.splitlines()[1].split() == [trial["key"][:12], "default", "emulated", "rdma-100g-pair"]


def test_show_of_a_record_gives_values_with_their_kind(call, told, spec, runs):
    key = told("show", spec)[0]["key"]
    assert told("show", key, "--out", runs)["key"] == key
    code, out, _ = call("show", key[:12], "--out", runs)
    assert code == 0
    assert "transport=zero-copy payload=64 KiB  emulated" in out


def test_status_tells_done_missing_and_left_over(call, told, spec, runs):
    assert [t["state"] for t in told("status", spec, "--out", runs)["trials"]] == ["ok"]
    found = told("status", spec, "--out", runs, "--set", "engine.sizes=[1 MiB]")
    assert [t["state"] for t in found["trials"]] == ["missing"]
    assert {tuple(o["differs"]) for o in found["left_over"]} >= {("engine.sizes: ['65536 B'] -> ['1048576 B']",)}
    code, out, _ = call("status", spec, "--out", runs, "--set", "engine.sizes=[1 MiB]")
    assert code == 0
    assert "left over (the spec has changed since)" in out


def test_compare_sets_two_runs_side_by_side(call, told, runs):
    found = told("compare", runs, runs)
    assert found
    assert {d["word"] for d in found} == {"same"}
    code, out, _ = call("compare", runs, runs)
    assert code == 0
    assert out.startswith("metric")


def test_compare_scores_predictions_against_the_measurement(call, told, runs):
    score = told("compare", "--predictions", "--out", runs)
    families = {f["metric"]: f for f in score["families"]}
    assert len(families["step_time"]["pairs"]) == 2
    code, out, _ = call("compare", "--predictions", "--out", runs)
    assert code == 0
    assert "MAPE" in out


def test_report_writes_what_has_been_recorded(call, told, spec, runs, tmp_path):
    found = told("report", spec, "--out", runs, "--to", tmp_path / "text", "--junit", tmp_path / "new" / "verdicts.xml")
    assert {Path(p).is_file() for p in found["report"].values()} == {True}
    assert [v["passed"] for v in found["verdicts"]] == [True]
    assert "<testsuite" in (tmp_path / "new" / "verdicts.xml").read_text()
    code, out, _ = call("report", spec, "--out", runs, "--to", tmp_path / "again")
    assert code == 0
    assert "pass" in out


def test_export_gives_one_row_a_sample(call, told, runs, tmp_path):
    table = tmp_path / "all.csv"
    rows = told("export", "--out", runs, "--to", table)["rows"]
    with table.open(newline="") as stream:
        found = list(csv.DictReader(stream))
    assert len(found) == rows > 0
    code, out, _ = call("export", "verbs", "--out", runs, "--to", table)
    assert code == 0
    assert out == f"{rows} rows written to {table}\n"


@pytest.mark.parametrize(
    ("what", "name", "column", "value"),
    [
        ("specs", "quickstart", "file", "specs/quickstart.yaml"),
        ("engines", "rdma", "state", "ok"),
        ("hardware", "laptop", "hosts", 1),
        ("metrics", "rdma", "engine", "rdma"),
        ("references", "rdma", "bound", "upper"),
        ("runs", "verbs", "spec", "verbs"),
    ],
    ids=lambda value: str(value),
)
def test_ls_lists_and_narrows_to_one_name(call, told, runs, what, name, column, value):
    rows = told("ls", what, name, "--out", runs)
    assert value in [row[column] for row in rows]
    code, out, _ = call("ls", what, name, "--out", runs)
    assert code == 0
    assert out.splitlines()[0].split() == list(rows[0])
    assert len(told("ls", what, "--out", runs)) >= len(rows)


@pytest.mark.parametrize(
    ("what", "slip", "meant"),
    [
        ("specs", "quickstrat", "quickstart"),
        ("engines", "rmda", "rdma"),
        ("hardware", "laptp", "laptop"),
        ("metrics", "rmda", "rdma"),
        ("references", "rmda", "rdma"),
        ("runs", "vebrs", "verbs"),
    ],
)
def test_ls_of_a_mistyped_name_says_which_was_meant(call, runs, what, slip, meant):
    code, _, err = call("ls", what, slip, "--out", runs)
    assert code == 2
    assert f"did you mean {meant!r}?" in err


def test_ls_references_carries_value_unit_bound_and_source(told):
    rows = {row["path"]: row for row in told("ls", "references", "rdma")}
    found = rows["rdma/abstract/device/speedup_over_grpc"]
    assert found["bound"] == "upper"
    assert found["value"].endswith("x")
    assert found["source"].startswith("abstract")


def test_doctor_names_what_is_missing_with_its_remedy(call, told):
    findings = {f["what"]: f for f in told("doctor")}
    assert findings["cores"]["found"] == str(len(os.sched_getaffinity(0)))
    assert call("doctor")[0] == 0


def test_schema_check_finds_the_committed_files_current(call, told):
    assert told("schema", "--check")["stale"] == []
    assert call("schema", "--check")[:2] == (0, "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_code_for_the_shell(call, shell):
    pytest.importorskip("argcomplete")
    code, out, _ = call("completion", shell)
    assert code == 0
    assert "harness" in out


def test_clean_deletes_what_was_named_and_only_runs(call, told, runs, tmp_path):
    out = tmp_path / "runs"
    shutil.copytree(runs, out)
    (out / "photographs").mkdir()
    (out / "photographs" / "cat.txt").write_text("a cat")
    assert told("reindex", "--out", out)["records"] == 3
    assert call("clean", "--out", out)[0] == 2
    assert call("clean", "verb", "--out", out)[0] == 2
    assert call("clean", "--all", "verbs", "--out", out)[0] == 2
    assert call("clean", "photographs", "--out", out)[0] == 2
    assert told("clean", "--all", "--out", out)["deleted"] == ["verbs"]
    assert (out / "photographs" / "cat.txt").read_text() == "a cat"
    assert told("ls", "runs", "--out", out) == []


def test_a_file_that_is_no_record_is_refused_in_one_line(call, spec, runs, tmp_path):
    damaged = tmp_path / "record.json"
    damaged.write_text("{")
    for arguments in (("show", damaged), ("compare", spec, spec)):
        code, _, err = call(*arguments, "--out", runs)
        assert code == 1
        assert "is not a record" in err
        assert err.count("\n") == 1


def test_a_damaged_record_asked_for_by_the_name_of_its_spec_is_told_about(call, runs, tmp_path):
    out = tmp_path / "runs"
    shutil.copytree(runs, out)
    for record in out.rglob("record.json"):
        record.write_text("{")
    code, _, err = call("show", "verbs", "--out", out)
    assert code == 1
    assert "is not a record" in err


@pytest.mark.parametrize("name", ["verbs", "Verbs"])
def test_two_specs_of_one_name_do_not_overwrite_each_others_reports(call, spec, tmp_path, name):
    other = tmp_path / "other.yaml"
    other.write_text(SPEC.replace("name: verbs", f"name: {name}").replace("64 KiB", "1 MiB"))
    code, _, err = call("run", spec, other, "--out", tmp_path / "runs")
    assert code == 2
    assert f"{other}:2:7: error: the spec is named {name!r}, and so is {spec}" in err
    assert not (tmp_path / "runs").exists()


def test_export_of_a_mistyped_spec_says_which_was_meant(call, runs, tmp_path):
    code, _, err = call("export", "vebrs", "--out", runs, "--to", tmp_path / "x.csv")
    assert code == 2
    assert "did you mean 'verbs'?" in err
    assert not (tmp_path / "x.csv").exists()


def test_reading_only_what_was_never_run_does_not_pass(spec, tmp_path):
    done = harness("run", spec, "--mode", "read-only", "--out", tmp_path / "none", "--no-report")
    assert done.returncode == 1
    assert "no record" in done.stderr


def test_an_out_directory_that_is_a_file_is_named_as_one(spec, tmp_path):
    (tmp_path / "file").write_text("")
    done = harness("run", spec, "--out", tmp_path / "file", "--no-report")
    assert done.returncode == 1
    assert "is a file; expected a directory" in done.stderr
