"""The engine's fields: what does not go together is refused with its place and the nearest that does."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import ValidationError

from engines.superscaler import job, plan_file
from engines.superscaler.engine import ENGINE
from engines.superscaler.job import Job
from engines.superscaler.spec import NAMED, PLANS, SPACES, Spec
from harness.api import PlanError

STAGES = {"stages": [{"ops": ["*"], "axes": {"data": 2}}], "splits": [{"follow": "batch", "axis": "data"}]}
MISTAKES = {
    "plan": ({"plan": "zero3"}, ("plan",), "there is no plan 'zero3'; did you mean 'zero-3'?", "one of search, "),
    "plan like no other": ({"plan": "xyzzy"}, ("plan",), "there is no plan 'xyzzy'", "interlaced, 3f1b"),
    "micro-batches": (
        {"global_batch": 16, "micro_batches": 3},
        ("micro_batches",),
        "a batch of 16 cannot be divided into 3 equal micro-batches",
        "2 or 4",
    ),
    "more micro-batches than samples": ({"global_batch": 2, "micro_batches": 3}, ("micro_batches",), "of 2", "2"),
    "degree of a search": ({"pipeline": 2}, ("pipeline",), "'search' chooses its own degrees", "no pipeline, or"),
    "degrees of a search": (
        {"plan": "megatron-3d", "tensor": 2, "data": 2},
        ("tensor",),
        "'megatron-3d' chooses",
        "no tensor and data, or",
    ),
    "degrees and devices": (
        {"plan": "hybrid", "devices": 8, "tensor": 2, "pipeline": 3},
        ("tensor",),
        "tensor 2 x pipeline 3 do not divide 8 devices",
        "degrees whose product divides 8",
    ),
    "by hand without a plan": ({"plan": "by-hand"}, ("by_hand",), "go together", "both, or neither"),
    "a plan by hand for another": ({"plan": "dp", "by_hand": STAGES}, ("plan",), "go together", "both, or neither"),
    "by hand without stages": (
        {"plan": "by-hand", "by_hand": {"order": "1f1b"}},
        ("by_hand",),
        "a plan by hand has no stages",
        "`stages`",
    ),
    "stages that are no list": (
        {"plan": "by-hand", "by_hand": {"stages": "all"}},
        ("by_hand", "stages"),
        "stages are 'all'",
        "a list of {ops, devices, axes, name}",
    ),
    "a stage that is no mapping": (
        {"plan": "by-hand", "by_hand": {"stages": [{"ops": ["*"]}, 3]}},
        ("by_hand", "stages", 1),
        "a stage is 3",
        "{ops, devices, axes, name}",
    ),
    "axes that are no mapping": (
        {"plan": "by-hand", "by_hand": {"stages": [{"ops": ["*"], "axes": "data"}]}},
        ("by_hand", "stages", 0, "axes"),
        "axes are 'data'",
        "{data: 1, tensor: 2}",
    ),
    "operators that are no patterns": (
        {"plan": "by-hand", "by_hand": {"stages": [{"ops": 5}]}},
        ("by_hand", "stages", 0, "ops"),
        "operators are 5",
        '["layers.0.*"]',
    ),
    "an axis that no stage has": (
        {"plan": "by-hand", "by_hand": {**STAGES, "splits": [{"follow": "batch", "axis": "dta"}]}},
        ("by_hand", "splits", 0, "axis"),
        "no stage has an axis 'dta'; did you mean 'data'?",
        "one of data",
    ),
    "a weight's axis that no stage has": (
        {"plan": "by-hand", "by_hand": {"stages": [{"ops": "*"}], "weights": [{"axis": "data"}]}},
        ("by_hand", "weights", 0, "axis"),
        "no stage has an axis 'data'",
        "one of devices",
    ),
}
REFUSED = {
    "field": ({**STAGES, "spits": []}, "by_hand: no field spits .* did you mean 'splits'"),
    "operator": ({**STAGES, "splits": [{"ops": "*.nope", "on": "n", "axis": "data"}]}, r"by_hand: .*'\*\.nope'"),
    "device": ({"stages": [{"ops": ["*"], "devices": [0, 7]}]}, "by_hand: .*device 7, but there are 2"),
    "axes": ({"stages": [{"ops": ["*"], "axes": {"data": 3}}]}, "by_hand: .*has 2 devices, but .*make 3"),
    "order": ({**STAGES, "order": "1f2b"}, "by_hand: no order is named '1f2b'.*did you mean '1f1b'"),
}
FIELDS = {"global_batch": 4, "micro_batches": 2}


@pytest.mark.parametrize(("fields", "path", "what", "expected"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_found_at_its_place(fields, path, what, expected):
    problems = list(Spec(**fields).check())
    assert [problem.path for problem in problems] == [path]
    assert what in problems[0].what
    assert expected in problems[0].expected


@pytest.mark.parametrize("fields", [{"model": "gpt-5"}, {"devices": 0}, {"verify": "all"}, {"precision": "fp8"}])
def test_unknown_choices_are_refused(fields):
    with pytest.raises(ValidationError):
        Spec(**fields)


@pytest.mark.parametrize("plan", PLANS)
def test_every_plan_is_accepted_by_its_name(plan):
    assert not list(Spec(plan=plan, by_hand=STAGES if plan == "by-hand" else {}).check())
    assert (plan in NAMED) + (plan in SPACES) + (plan == "by-hand") == 1


def test_a_label_has_the_degrees_that_were_given():
    assert Spec(plan="hybrid", tensor=2, data=4).label == "hybrid-tp2-dp4"


def test_a_plan_by_hand_is_the_named_one_that_it_spells_out():
    by_hand = job.planned(Spec(plan="by-hand", by_hand=STAGES, **FIELDS), None).plan
    named = job.planned(Spec(plan="dp", **FIELDS), None).plan
    assert by_hand.micro_batches == named.micro_batches == 2
    # The named one has axes of degree 1 as well.
    assert {op: split[0] for op, split in by_hand.stages[0].splits.items()} == {
        op: split[0] for op, split in named.stages[0].splits.items()
    }


@pytest.mark.parametrize(("recipe", "message"), REFUSED.values(), ids=REFUSED)
def test_a_plan_by_hand_that_cannot_be_is_refused_as_such(recipe, message):
    spec = Spec(plan="by-hand", by_hand=recipe, **FIELDS)
    assert not list(spec.check())
    with pytest.raises(PlanError, match=message):
        job.planned(spec, None)


def test_a_plan_of_the_harness_is_read_back_as_the_same_job():
    plan = ENGINE.plan(Spec(plan="1f1b", **FIELDS), None)
    read = Job.from_json(plan.payload)
    assert read.to_json() == plan.payload
    assert read.samples == 4
    assert plan_file.digest(read.plan) == plan_file.digest(job.planned(Spec(plan="1f1b", **FIELDS), None).plan)


def test_the_spec_is_light_to_import():
    heavy = "{'numpy', 'torch', 'networkx', 'highspy', 'ortools', 'matplotlib'} & set(sys.modules)"
    code = f"import sys, engines.superscaler.spec; sys.exit(str({heavy}) if {heavy} else 0)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).returncode == 0
