"""Random plans that the static levels let pass compute what the model computes under plain autograd on one device."""

from __future__ import annotations

import pytest

from engines.superscaler import models, trace
from engines.superscaler.verify import random_plans, verify
from engines.superscaler.verify.mutations import mutants


@pytest.fixture(scope="module")
def perceptron():
    module, example = models.tiny("mlp")
    return module, example, trace.trace(module, example, "mlp")


@pytest.mark.parametrize("seed", range(4))
def test_a_random_plan_that_holds_statically_holds_in_numbers(perceptron, seed):
    module, example, graph = perceptron
    report = verify(random_plans.program(graph, seed), 3, module=module, example=example)
    assert report.ok, report.render()
    assert report.level == 3


@pytest.mark.parametrize("kind", ["all-reduce dropped, flow intact", "not scaled", "micro-batch accumulated twice"])
def test_a_planted_bug_shows_in_numbers_too(perceptron, kind):
    from engines.superscaler.projection import project
    from engines.superscaler.verify import equality

    module, example, graph = perceptron
    for seed in range(20):
        program = random_plans.program(graph, seed, devices=2)
        lists = {rank: project(program, rank) for rank in program.plan.devices}
        bug = next((mutant for mutant in mutants(program, lists) if mutant.kind == kind), None)
        if bug is not None:
            assert equality.check(bug.program, bug.lists, module, example)
            return
    raise AssertionError(f"no plan of 20 has a place for {kind!r}")
