"""Plans that the search finds, proven and computed beside one device."""

from __future__ import annotations

from functools import cache

import pytest

from engines.superscaler import models
from engines.superscaler.dependency import preserve
from engines.superscaler.runtime import reference
from engines.superscaler.runtime.interpret import interpret
from engines.superscaler.runtime.outcome import compare
from engines.superscaler.search import search
from engines.superscaler.search.constraints import Space
from engines.superscaler.trace import trace
from engines.superscaler.verify import verify
from harness.hardware import load_profile


@pytest.fixture(scope="module")
def profile():
    return load_profile("v100x8-nvlink")


FORCED = {
    "co-shard": Space(
        "co-shard", dims=(1,), families=("pipeline",), recompute=("block",), parts=(2,), zero=(0,), stages=(1, 1)
    ),
    "mixed": Space("mixed", dims=(1,), families=("pipeline",), recompute=("mixed",), zero=(0, 2), stages=(2, 2)),
    "interlaced": Space("interlaced", dims=(1,), families=("interlaced",), zero=(0,), stages=(2, 2)),
    "3f1b": Space("3f1b", dims=(1,), families=("3f1b",), recompute=("none",), zero=(0,), stages=(2, 2)),
    "interleaved": Space(
        "interleaved", dims=(1,), families=("pipeline",), schedules=("interleaved",), zero=(0,), stages=(2, 2)
    ),
    "passes": Space("passes", dims=(1,), families=("pipeline",), recompute=("block",), zero=(0,), stages=(2, 2)),
    "full": Space(),
}


@cache
def on_one_device(name):
    module, example = models.build(name, **({"recycles": 2} if name == "evoformer" else {}))
    batches = reference.make_batches(example, 2, 2)
    return module, trace(module, example, name), batches, reference.train(module, batches)


@pytest.mark.parametrize(
    ("name", "space", "devices"),
    [
        ("gpt", "co-shard", 2),
        ("swin", "co-shard", 2),
        ("gpt", "mixed", 4),
        ("gpt", "interleaved", 2),
        ("t5", "interlaced", 2),
        ("evoformer", "3f1b", 2),
        ("gpt", "full", 4),
        pytest.param("t5", "mixed", 2, marks=pytest.mark.wide),
        pytest.param("swin", "full", 4, marks=pytest.mark.wide),
        pytest.param("evoformer", "passes", 2, marks=pytest.mark.wide),
        pytest.param("evoformer", "full", 2, marks=pytest.mark.wide),
    ],
)
def test_searched_plans_are_proven_and_compute_what_one_device_does(profile, name, space, devices):
    module, graph, batches, expected = on_one_device(name)
    found = search(graph, profile, devices=devices, micro_batches=2, space=FORCED[space], retime=None)
    parts = {group.parts for stage in found.plan.stages for group in stage.groups}
    assert (2 in parts) == (space == "co-shard") or space == "full"
    if space == "3f1b":
        assert [stage.mesh.devices for stage in found.plan.stages] == [(0,), (1,)] * 2
        assert {block.stage for block in found.plan.order if block.what == "B"} == {2, 3}
    program = preserve(graph, found.plan)
    report = verify(program, 2)
    assert report.ok, report
    compare(interpret(program, module, batches), expected, 1e-10)
