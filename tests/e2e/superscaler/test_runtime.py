"""Named plans on real processes over gloo, in float32, against the models on one device."""

import contextlib
from functools import cache

import pytest
import torch

from engines.superscaler import models, named, trace
from engines.superscaler.dependency import preserve
from engines.superscaler.projection import project
from engines.superscaler.runtime import reference
from engines.superscaler.runtime.optimizer import Optimizer
from engines.superscaler.runtime.outcome import compare
from engines.superscaler.runtime.processes import Pool
from engines.superscaler.runtime.traffic import predicted
from harness.api import HarnessError, PlanError

MICRO_BATCHES = 2
STEPS = 2
# A gradient that is zero but for rounding must not decide where Adam moves a weight.
OPTIMIZER = Optimizer(epsilon=1e-4)
QUICK = {("gpt", 4): named.NAMES, ("t5", 2): ("tp", "interlaced", "co-shard"), ("swin", 2): ("hybrid", "1f1b")}


def cases():
    """Every named plan of every model on 2, 4 and 8 processes; those beyond half a minute's worth are `slow`."""
    for size in (2, 4, 8):
        for model in ("gpt", "t5", "swin", "evoformer"):
            for plan in named.NAMES:
                quick = plan in QUICK.get((model, size), ())
                yield pytest.param(model, plan, size, marks=() if quick else pytest.mark.slow)


@pytest.fixture(scope="module")
def pools():
    """Size -> a pool; the quick part needs but one of 4, and eight processes on few processors wait for one another."""
    with contextlib.ExitStack() as stack:
        yield cache(lambda size: stack.enter_context(Pool(size)))


@cache
def on_one_device(name):
    module, example = models.tiny(name)
    batches = reference.make_batches(example, STEPS, MICRO_BATCHES)
    return module, trace.trace(module, example), batches, reference.train(module, batches, OPTIMIZER, torch.float32)


@pytest.mark.parametrize(("model", "plan", "size"), list(cases()))
def test_processes_compute_what_one_device_does(pools, model, plan, size):
    module, graph, batches, expected = on_one_device(model)
    try:
        program = preserve(graph, named.build(plan, graph, size, micro_batches=MICRO_BATCHES))
    except PlanError as error:
        pytest.skip(f"no such plan for this model: {error}")
    found = pools(max(size, 4)).run(program, module, batches, optimizer=OPTIMIZER)
    compare(found, expected, 1e-6, floor=1.0)
    for rank in program.plan.devices:
        sent, received = predicted(project(program, rank))
        assert (found.sent[rank], found.received[rank]) == (STEPS * sent, STEPS * received)


def test_a_rank_that_fails_is_named():
    module, graph, batches, _ = on_one_device("mlp")
    program = preserve(graph, named.build("dp", graph, 2, micro_batches=MICRO_BATCHES))
    with Pool(2) as made:
        with pytest.raises(HarnessError, match="a pool of 2 processes cannot be devices"):
            made.run(preserve(graph, named.build("dp", graph, 4, micro_batches=2)), module, batches)
        with pytest.raises(HarnessError, match=r"rank \d failed:(.|\n)*the plan has 2 micro-batches, the batch 1"):
            made.run(program, module, [batches[0][:1]])
        with pytest.raises(HarnessError, match="closed"):
            made.run(program, module, batches)
