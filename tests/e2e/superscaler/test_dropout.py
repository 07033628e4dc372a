"""Random masks depend on where an element is in the whole, so plans that split it anyhow drop the same ones (I9)."""

import pytest

from engines.superscaler import models, named, trace
from engines.superscaler.dependency import preserve
from engines.superscaler.runtime import reference
from engines.superscaler.runtime.interpret import interpret
from engines.superscaler.runtime.outcome import compare

MICRO_BATCHES = 2


@pytest.fixture(scope="module")
def gpt():
    module, example = models.tiny("gpt", dropout=0.1)
    return module, trace.trace(module, example), reference.make_batches(example, 2, MICRO_BATCHES)


@pytest.fixture(scope="module")
def on_one_device(gpt):
    module, graph, batches = gpt
    return interpret(reference.whole(graph, MICRO_BATCHES), module, batches, seed=7)


@pytest.mark.parametrize("plan", ["dp", "tp", "sp", "1f1b"])
def test_every_split_drops_the_same_elements(gpt, on_one_device, plan):
    module, graph, batches = gpt
    program = preserve(graph, named.build(plan, graph, 2, micro_batches=MICRO_BATCHES))
    compare(interpret(program, module, batches, seed=7), on_one_device, 1e-9)


def test_another_seed_drops_others(gpt, on_one_device):
    module, graph, batches = gpt
    other = interpret(reference.whole(graph, MICRO_BATCHES), module, batches[:1], seed=8)
    assert other.loss[0] != pytest.approx(on_one_device.loss[0], rel=1e-4)
