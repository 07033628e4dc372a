"""The engine's fields, its plan, and what it predicts."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from pydantic import ValidationError

from emulation.evaluate import simulate
from engines.megatron.engine import ENGINE
from engines.megatron.plan import Job
from engines.megatron.spec import PRESETS, Spec
from harness.api import Plan, PlanError, Repeat
from harness.hardware import load_profile

MISTAKES = {
    "heads": ({"heads": 5}, ("heads",), "a width of 64 cannot be divided among 5 heads", "heads: 4 or 8"),
    "tensor and heads": ({"tensor": 8}, ("tensor",), "4 heads cannot be divided among 8", "tensor: 4"),
    "tensor and vocabulary": ({"tensor": 2, "vocabulary": 255}, ("tensor",), "255 tokens", "tensor: 1 or 3"),
    "pipeline": ({"pipeline": 3}, ("pipeline",), "4 layers cannot be divided into 3", "pipeline: 2 or 4"),
    "batch": ({"global_batch": 10, "micro_batch": 2, "data": 2}, ("global_batch",), "a batch of 10", "8 or 12"),
    "small batch": ({"global_batch": 1, "data": 2}, ("global_batch",), "on 2 replicas", "global_batch: 2"),
}


class Emulation:
    repeat = Repeat()

    def __init__(self, name):
        self.profile = load_profile(name)

    def simulate(self, workload, *, name=""):
        return simulate(workload, self.profile, seed=0)


def predicted(profile, **fields):
    spec = Spec(**fields)
    assert not list(spec.check())
    found = {}
    for m in ENGINE.predict(ENGINE.plan(spec, None), Emulation(profile)):
        assert not m.problem({metric.name: metric for metric in ENGINE.metrics()})
        found[m.name] = m.values()[0]
    return found


@pytest.mark.parametrize(("fields", "path", "what", "expected"), MISTAKES.values(), ids=MISTAKES)
def test_what_does_not_divide_is_found_at_its_place(fields, path, what, expected):
    problems = list(Spec(**fields).check())
    assert [problem.path for problem in problems] == [path]
    assert what in problems[0].what
    assert expected in problems[0].expected


def test_a_custom_model_names_every_dimension_it_lacks():
    problems = list(Spec(model="custom", layers=2, hidden=8, sequence=4).check())
    assert [problem.path for problem in problems] == [("heads",), ("vocabulary",)]


@pytest.mark.parametrize("fields", [{"tensor": 0}, {"model": "gpt-5"}, {"dtype": "fp8"}, {"schedule": "zero"}])
def test_unknown_choices_are_refused(fields):
    with pytest.raises(ValidationError):
        Spec(**fields)


def test_the_spec_is_light_to_import():
    heavy = "{'numpy', 'torch', 'simpy'} & set(sys.modules)"
    code = f"import sys, engines.megatron.spec; sys.exit(str({heavy}) if {heavy} else 0)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_plan_is_json_and_comes_back():
    plan = ENGINE.plan(Spec(model="gpt3-175b", tensor=8, pipeline=8, global_batch=64), None)
    assert Job.from_json(json.loads(json.dumps(plan.payload))).to_json() == plan.payload
    assert Plan(plan.payload).digest == plan.digest


def test_ranks_lie_as_megatron_lays_them():
    job = Job.from_spec(Spec(tensor=2, pipeline=2, data=2))
    assert [(p.stage, p.data, p.tensor) for p in map(job.place, range(8))] == [
        (s, d, t) for s in range(2) for d in range(2) for t in range(2)
    ]
    assert job.tensor_group(job.place(5)) == [4, 5]
    assert job.data_group(job.place(5)) == [5, 7]


def test_gpt3_has_its_parameters():
    assert PRESETS["gpt3-175b"]["layers"] == 96
    assert Job.from_spec(Spec(model="gpt3-175b")).shape.parameters == pytest.approx(175e9, rel=0.01)


def test_a_prediction_has_the_metrics_of_a_run_and_repeats_exactly():
    fields = {"model": "gpt-small", "tensor": 2, "pipeline": 2, "global_batch": 4}
    found = predicted("a100x8-hdr", **fields)
    assert found == predicted("a100x8-hdr", **fields)
    measured_only = {"loss", "gradient_error"}
    assert set(found) == {metric.name for metric in ENGINE.metrics()} - measured_only


def test_a_pipeline_idles_as_its_schedule_says():
    # (p - 1) / (m + p - 1) of the step, and the messages on top (Narayanan et al. 2021, section 2.2.1).
    fields = {"model": "gpt-small", "hidden": 2048, "pipeline": 4, "vocabulary": 64, "bucket": "1 GiB"}
    for batch in (4, 16):
        found = predicted("a100x8-hdr", **fields, global_batch=batch)["bubble_fraction"]
        assert found == pytest.approx(3 / (batch + 3), rel=0.15)


def test_more_micro_batches_shrink_the_bubble_and_recomputation_adds_a_third():
    fields = {"model": "gpt-small", "hidden": 2048, "sequence": 1024, "vocabulary": 64, "dtype": "bf16"}
    one = predicted("a100x8-hdr", **fields)
    again = predicted("a100x8-hdr", **fields, recompute="full")
    assert again["step_time"] / one["step_time"] == pytest.approx(4 / 3, rel=0.1)
    assert again["peak_memory"] < one["peak_memory"]


def test_too_few_devices_are_refused_with_their_number():
    with pytest.raises(PlanError, match=r"plan tp1-pp1-dp32 needs 32 devices; profile 'a100x8-hdr' has 16"):
        predicted("a100x8-hdr", data=32, global_batch=32)


def test_a_stage_that_does_not_fit_is_refused_with_what_it_lacks():
    needs = r"stage 0 needs 401.7 GiB on each device .*331.7 GiB too much; raise `tensor` or `pipeline`"
    with pytest.raises(PlanError, match=needs):
        predicted("a100x8-hdr", model="gpt3-175b", tensor=8, dtype="bf16")
