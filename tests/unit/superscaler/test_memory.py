"""Memory from actions: what is held for what, and the verdict on a profile."""

from __future__ import annotations

import itertools

import pytest

from engines.superscaler import memory
from engines.superscaler.precision import Precision
from harness.api import PlanError
from harness.hardware import load_profile

from .pipelines import BATCH, INNER, WIDTH, pipeline, table

WEIGHTS = 2 * WIDTH * INNER
STREAM = BATCH * WIDTH * 4
"""Bytes of one micro-batch between stages."""


@pytest.fixture(autouse=True)
def _linear(monkeypatch):
    table(monkeypatch)


def test_weights_and_state_are_there_from_the_start():
    (held,) = memory.over_step(pipeline(1, 1, 1, micro_batches=1))
    assert held.peak.by["weights"] == 4 * WEIGHTS
    assert held.peak.by["optimizer"] == 8 * WEIGHTS
    assert sum(held.peak.by.values()) == held.peak.total


def test_half_precision_has_a_copy_in_the_optimizer():
    (held,) = memory.over_step(pipeline(1, 1, 1, micro_batches=1), Precision("fp16"))
    assert (held.peak.by["weights"], held.peak.by["optimizer"]) == (2 * WEIGHTS, 12 * WEIGHTS)


def test_tensor_split_halves_weights_and_inner_activations():
    one = memory.peak(pipeline(1, 1, 1))[0]
    two = memory.peak(pipeline(1, 1, 2))
    assert two[0] == two[1]
    assert two[0].by["weights"] * 2 == one.by["weights"]


@pytest.mark.parametrize("micro_batches", [1, 2, 5])
def test_gpipe_keeps_every_micro_batch_until_its_backward_pass(micro_batches):
    one, _ = memory.over_step(pipeline(2, 1, 1, micro_batches))
    forwards = [after for (section, _, after) in one.curve[:micro_batches]]
    steps = {later - earlier for earlier, later in itertools.pairwise(forwards)}
    # Input, inner tensor and the output, which nothing here frees.
    assert steps <= {STREAM + BATCH * INNER * 4 + STREAM}
    assert one.peak.by["gradients"] >= 4 * WEIGHTS


def test_gradients_come_with_the_first_backward_pass():
    (one,) = memory.over_step(pipeline(1, 1, 1, micro_batches=2))
    after = {section: held for section, _, held in one.curve}
    before = after[1]
    assert after[2] - before == 4 * WEIGHTS - (STREAM + BATCH * INNER * 4)


def test_a_stage_that_does_not_fit_says_how_much_it_lacks():
    profile = load_profile("v100x8-nvlink")
    program = pipeline(2, 2, 2)
    assert memory.check(program, profile)[0].devices == (0, 1, 2, 3)
    with pytest.raises(PlanError, match=r"stage 1 \(part 1\) needs .* on each of 4 devices .* too much; split the opt"):
        memory.check(program, profile, Precision(state=10**7))
