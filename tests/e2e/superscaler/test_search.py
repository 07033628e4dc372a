"""A whole recycled model, traced and planned."""

from __future__ import annotations

import pytest

from engines.superscaler import models
from engines.superscaler.cost.abstract import Abstract
from engines.superscaler.precision import Precision
from engines.superscaler.search.constraints import Space
from engines.superscaler.search.problem import Bench
from engines.superscaler.search.searching import _Search
from engines.superscaler.trace import trace
from harness.hardware import load_profile


@pytest.fixture(scope="module")
def profile():
    return load_profile("v100x8-nvlink")


def test_a_recycled_model_runs_three_passes_on_the_same_devices(profile):
    module, inputs = models.tiny("evoformer")
    graph = trace(module, inputs, "evoformer")
    space = Space("3f1b", dims=(1,), families=("3f1b",), recompute=("none",), zero=(0,), stages=(2, 2))
    searching = _Search(Bench(graph, Abstract(profile), space, Precision()), 2, 4, 2**34)
    made = next(iter(searching.recycled()))
    assert [stage.mesh.devices for stage in made.plan.stages] == [(0,), (1,)] * 3
    differentiated = {block.stage for block in made.plan.order if block.what == "B"}
    assert differentiated == {4, 5}
