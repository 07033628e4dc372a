# ruff: noqa: E501 - a table reads best with one case a line
import json
import os
import subprocess
import sys

import pytest

from harness import explain
from harness.backends.base import Capabilities
from harness.errors import SpecError
from harness.load import load_experiment
from harness.resolve import resolve

HEAD = "schema: 1\nname: x\nengine: {name: toy, size: 4 KiB}\n"
EMULATED = HEAD + "on: {backend: emulated, hardware: laptop}\n"

pytestmark = pytest.mark.usefixtures("steady")


def trials(project, text, *overrides, on=""):
    return resolve(load_experiment(project.write(text), overrides), on=on)


def key(project, text, *overrides, on=""):
    (trial,) = trials(project, text, *overrides, on=on)
    return trial.key


def where(found):
    return [(t.target.backend, t.target.hardware) for t in found]


TWO = HEAD + "on:\n  - {backend: local, hardware: laptop}\n  - {backend: emulated, hardware: h100x8-ndr}\n"


@pytest.mark.parametrize(
    ("text", "on", "expected"),
    [
        (TWO, "", [("local", "laptop"), ("emulated", "h100x8-ndr")]),
        (TWO, "local", [("local", "laptop")]),
        (TWO, "emulated", [("emulated", "h100x8-ndr")]),
        (TWO, "ray", [("ray", "laptop")]),
        (TWO, "ray://head:10001", [("ray", "laptop")]),
        (TWO, "emulated:a100x8-hdr", [("emulated", "a100x8-hdr")]),
        (TWO, "auto", [("local", "laptop"), ("local", "h100x8-ndr")]),
        (HEAD, "", [("local", "laptop")]),
        (HEAD, "emulated", [("emulated", "laptop")]),
        (EMULATED, "local", [("local", "laptop")]),
    ],
)
def test_on_keeps_the_targets_of_a_backend_or_makes_one(project, text, on, expected):
    assert where(trials(project, text, on=on)) == expected


@pytest.mark.parametrize(
    ("on", "message"),
    [
        ("emulatd", "--on:1:1: error: no backend 'emulatd'; expected one of auto, local, emulated, emulated:PROFILE, softroce, softroce:PROFILE, ray, ray://HOST:PORT; did you mean 'emulated'?"),
        ("ray://", "--on:1:1: error: 'ray://' names no Ray cluster; expected ray://HOST:PORT, as in ray://head:10001"),
        ("ray://head", "--on:1:1: error: 'ray://head' names no Ray cluster; expected ray://HOST:PORT, as in ray://head:10001"),
        ("emulated:laptpo", "--on:1:1: error: no hardware profile 'laptpo'"),
        ("emulated:", "--on:1:1: error: 'emulated:' names no hardware profile"),
        ("ray:/x", "--on:1:1: error: no hardware profile '/x'"),
    ],
)  # fmt: skip
def test_a_wrong_on_is_refused(project, on, message):
    with pytest.raises(SpecError) as caught:
        trials(project, HEAD, on=on)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("axis", "on"), [("on.hardware: [laptop]", "emulated:laptop"), ("on.backend: [local, emulated]", "ray")]
)
def test_what_is_swept_cannot_be_given_by_on_as_well(project, axis, on):
    with pytest.raises(SpecError, match="is swept by the spec, and given by --on"):
        trials(project, HEAD + f"sweep: {{grid: {{{axis}}}}}\n", on=on)


def test_auto_is_real_where_the_needs_are_met_and_says_why(project, monkeypatch):
    monkeypatch.setattr("harness.backends.capabilities", lambda name: Capabilities(gpus=2, memory=2**40))
    text = HEAD + "on: {hardware: h100x8-ndr}\nneeds: {gpus: 2}\nsweep: {grid: {needs.gpus: [2, 3]}}\n"
    met, unmet = trials(project, text)
    assert (met.target.backend, met.target.reason) == ("local", "auto: this machine has what the spec needs")
    assert unmet.target.backend == "emulated"
    assert "GPUs per host: needs 3, has 2" in unmet.target.reason


def test_the_order_is_targets_then_cells(project):
    found = trials(project, TWO + "sweep: {grid: {engine.rate: [2, 1]}}\n")
    assert [(t.target.backend, t.cell) for t in found] == [
        ("local", "rate=2"), ("local", "rate=1"), ("emulated", "rate=2"), ("emulated", "rate=1")
    ]  # fmt: skip


def test_a_trial_has_nothing_left_to_decide(project):
    (trial,) = trials(project, EMULATED + "sweep: {grid: {engine.size: [1 MiB]}}\n", "engine.rate=2")
    assert trial.engine_fields["size"] == "1048576 B"
    assert trial.resolved["engine"]["colour"] == "red"
    assert trial.resolved["on"] == {"backend": "emulated", "hardware": "laptop"}
    assert trial.swept == {"engine.size": "1 MiB"}
    assert trial.origins["engine.size"] == "sweep"
    assert trial.origins["engine.rate"] == "--set #1"
    assert trial.origins["engine.colour"] == "default"
    assert trial.origins["on.backend"] == "specs/spec.yaml:4:15"
    assert trial.package == "toy_engine"
    assert trial.engine_version == "3"
    json.dumps(trial.resolved)
    json.dumps(trial.profile)


def test_on_and_hardware_can_be_swept(project):
    text = EMULATED + "sweep: {grid: {on.hardware: [laptop, h100x8-ndr], repeat.seed: [1, 2]}}\n"
    found = trials(project, text)
    assert [t.target.hardware for t in found] == ["laptop", "laptop", "h100x8-ndr", "h100x8-ndr"]
    assert [t.repeat.seed for t in found] == [1, 2, 1, 2]
    assert len({t.key for t in found}) == 4


CHANGES = {
    "engine field": "engine.rate=2",
    "engine default": "engine.flag=true",
    "nested engine field": "engine.how={kind: fast, speed: 2}",
    "size": "engine.size=8 KiB",
    "seed": "repeat.seed=1",
    "runs": "repeat.runs=6",
    "warmup": "repeat.warmup=0",
    "needs": "needs.hosts=2",
    "rdma": "needs.rdma=true",
    "memory need": "needs.memory=1 GiB",
    "hardware": "on.hardware=h100x8-ndr",
    "backend": "on.backend=local",
}
SAME = {
    "name": "name=y",
    "description": "description=other",
    "paper": "paper=rdma",
    "timeout": "limits.timeout=1 s",
    "retries": "limits.retries=3",
    "memory limit": "limits.memory=1 GiB",
    "tables": "tables=[{rows: way, value: copy_time}]",
    "expect": "expect=[{metric: copy_time}]",
    "unhashed engine field": "engine.colour=blue",
    "default written out": "engine.rate=1",
    "default written as a float": "engine.rate=1.0",
    "another spelling of the size": "engine.size=4096 B",
    "nested default written out": "engine.how={kind: fast, speed: 1}",
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
def test_what_can_change_a_number_changes_the_key(project, change, monkeypatch):
    (project.root / "results" / "published").mkdir()
    assert key(project, EMULATED, change) != key(project, EMULATED)


@pytest.mark.parametrize("change", SAME.values(), ids=list(SAME))
def test_what_cannot_change_a_number_leaves_the_key(project, change):
    (project.root / "results" / "published").mkdir()
    (project.root / "results" / "published" / "rdma.yaml").write_text("")
    assert key(project, EMULATED, change) == key(project, EMULATED)


def test_every_part_of_the_key_changes_it(project, monkeypatch):
    before = key(project, EMULATED)
    spec = load_experiment(project.write(EMULATED)).engine.Spec
    monkeypatch.setattr(spec, "VERSION", "4")
    assert key(project, EMULATED) != before
    monkeypatch.setattr(spec, "VERSION", "3")
    monkeypatch.setattr("harness.resolve.place", lambda backend, on="": {"model": "other"})
    assert key(project, EMULATED) != before
    monkeypatch.setattr("harness.loading.keys.SCHEMA_VERSION", 2)
    monkeypatch.setattr("harness.resolve.place", lambda backend, on="": {"there": backend, "on": on})
    assert key(project, EMULATED) != before


def test_the_emulators_model_and_the_machine_are_what_a_backend_rests_on(monkeypatch):
    from harness.loading.keys import place

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("emulation.MODEL_VERSION", "77")
    monkeypatch.setattr("harness.provenance.machine_fingerprint", lambda: "abc")
    assert place("emulated") == {"model": "77"}
    assert place("local") == {"machine": "abc"}
    assert place("ray") == {"machine": "abc"}
    assert place("ray", "ray://head:1") == {"cluster": "ray://head:1"}
    monkeypatch.setenv("RAY_ADDRESS", "ray://other:2")
    assert place("ray", "ray") == {"cluster": "ray://other:2"}


def test_the_order_of_keys_in_a_file_does_not_matter(project):
    turned = "on: {hardware: laptop, backend: emulated}\nengine: {size: 4 KiB, name: toy}\nname: x\nschema: 1\n"
    assert key(project, turned) == key(project, EMULATED)


def test_neither_order_nor_keys_depend_on_the_hash_seed(project):
    text = TWO + "sweep: {grid: {engine.tags: [[b, a], [a, b]], engine.rate: [2, 1]}}\n"
    path = project.write(text)
    code = (
        "from harness.load import load_experiment; from harness.resolve import resolve\n"
        f"print([(t.cell, t.key, t.origins) for t in resolve(load_experiment({str(path)!r}), on='emulated')])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    seen = {
        subprocess.run(
            [sys.executable, "-c", code], env={**environment, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("0", "1", "2")
    }
    assert len(seen) == 1


def test_cells_that_differ_in_a_limit_alone_are_different_trials(project):
    found = trials(project, EMULATED + "sweep: {grid: {limits.timeout: [1 s, 2 s], engine.colour: [red, blue]}}\n")
    assert len({t.key for t in found}) == 4


def test_cells_that_the_models_make_equal_are_refused(project):
    with pytest.raises(SpecError, match=r"spec\.yaml:5:1: error: cells rate=1 and rate=1\.0 are the same trial"):
        trials(project, EMULATED + "sweep: {grid: {engine.rate: [1, 1.0]}}\n")


def test_a_combination_that_is_wrong_only_together_is_placed_in_the_sweep(project):
    text = EMULATED + "sweep:\n  grid:\n    engine.size: [2 KiB, 4 KiB]\n    engine.piece: [1 KiB, 3 KiB]\n"
    with pytest.raises(SpecError) as caught:
        trials(project, text)
    (problem,) = caught.value.problems
    assert str(problem).startswith(
        "specs/spec.yaml:8:27: error: the piece is larger than the whole (cell size=2KiB,piece=3KiB)"
    )


def test_a_sweep_with_every_cell_excluded_is_refused(project):
    text = EMULATED + "sweep: {grid: {engine.rate: [1]}, exclude: [{engine.rate: 1}]}\n"
    with pytest.raises(SpecError, match="every cell of the sweep is excluded"):
        trials(project, text)


AWKWARD = """\
schema: 1
name: awkward
description: "1e6"
engine:
  name: toy
  size: 4 KiB
  tags: ["NO", "yes", "1e6", "0o17", "017", "3:25", "1_000", "~", "2024-01-01", "", "a: b", "<<", "=", "'"]
  colour: "null"
  rate: 1e-7
  options: {"on": 1, "y": 2, "1": 3}
on: [{backend: emulated, hardware: laptop}, {backend: emulated, hardware: h100x8-ndr}]
limits: {timeout: 1.5 us, memory: 3 GiB}
sweep: {grid: {engine.piece: [1 KiB, 2 KiB], limits.timeout: [3 us, 1 min]}, exclude: [{engine.piece: 1 KiB, limits.timeout: 3 us}]}
expect: [{metric: copy_time, at_most: 3 s, tolerance: 6 %}]
"""


@pytest.mark.parametrize("text", [EMULATED, TWO, AWKWARD], ids=["plain", "two targets", "awkward"])
def test_the_resolved_spec_as_yaml_comes_to_the_same_trials(project, text):
    loaded = load_experiment(project.write(text), ["repeat.seed=9"])
    again = load_experiment(project.write(explain.to_yaml(loaded), "again.yaml"))
    assert again.engine_spec == loaded.engine_spec
    assert [(t.key, t.cell) for t in resolve(again)] == [(t.key, t.cell) for t in resolve(loaded)]
    assert explain.to_yaml(again) == explain.to_yaml(loaded)


def test_explain_lists_every_value_with_its_origin(project):
    loaded = load_experiment(project.write(EMULATED), ["engine.rate=2"])
    rows = {row.path: (row.value, row.origin) for row in explain.explain(loaded)}
    assert rows["engine.rate"] == (2.0, "--set #1")
    assert rows["engine.piece"] == ("1024 B", "default")
    assert rows["on.backend"] == ("emulated", "specs/spec.yaml:4:15")
    assert [row.path for row in explain.explain(loaded, "repeat")] == ["repeat.warmup", "repeat.runs", "repeat.seed"]
    with pytest.raises(SpecError, match=r"did you mean 'engine\.rate'\?"):
        explain.explain(loaded, "engine.rte")


def test_the_parts_of_a_key_can_be_listed(project):
    (trial,) = trials(project, EMULATED)
    parts = dict(explain.key_rows(trial))
    assert parts["engine.version"] == "3"
    assert parts["backend"] == "emulated"
    assert "engine.fields.colour" not in parts


def test_a_combination_that_is_excluded_need_not_be_right(project):
    text = EMULATED + "sweep:\n  grid:\n    engine.size: [2 KiB, 4 KiB]\n    engine.piece: [3 KiB, 1 KiB]\n"
    text += "  exclude: [{engine.size: 2 KiB, engine.piece: 3 KiB}]\n"
    assert len(trials(project, text)) == 3
