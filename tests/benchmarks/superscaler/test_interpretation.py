"""What interpreting a trace costs over plain PyTorch: one process, one device, the same model and optimizer."""

import statistics
import time

import pytest
import torch

from engines.superscaler import models, trace
from engines.superscaler.projection import project
from engines.superscaler.runtime import reference
from engines.superscaler.runtime.interpret import initial, named
from engines.superscaler.runtime.interpreter import Rank
from engines.superscaler.runtime.optimizer import Optimizer

ROUNDS = 9
# A gradient that is zero but for rounding must not decide where Adam moves a weight.
OPTIMIZER = Optimizer(epsilon=1e-4)


@pytest.mark.wide
def test_interpretation_over_plain_autograd(benchmark):
    torch.set_num_threads(1)
    module, example = models.build("gpt", hidden=256, heads=4, sequence=128, batch=4)
    (step,) = reference.make_batches(example, 1, 1)
    program = reference.whole(trace.trace(module, example))
    rank = Rank(program, 0, project(program, 0), OPTIMIZER, dtype=torch.float32)
    rank.place(*initial(module, torch.float32))
    batch = named(program, step, torch.float32)
    optimizer = OPTIMIZER.make(module.parameters())

    def interpreted():
        assert not list(rank.step(batch))
        rank.finish()

    def plain():
        optimizer.zero_grad()
        module(*step[0]).backward()
        optimizer.step()

    def seconds(action):
        begin = time.perf_counter()
        action()
        return time.perf_counter() - begin

    interpreted()
    plain()
    for name, ours in rank.parameters().items():
        torch.testing.assert_close(ours, module.get_parameter(name).detach(), rtol=1e-5, atol=1e-6)
    # Turn and turn about, so that what else the machine does weighs on both.
    ratios = [seconds(interpreted) / seconds(plain) for _ in range(ROUNDS)]
    benchmark.extra_info["ratio"] = statistics.median(ratios)
    benchmark.pedantic(interpreted, rounds=1)
    # Far above what is aimed at (1.15): this is for the figure, and against blunders.
    assert statistics.median(ratios) < 2
