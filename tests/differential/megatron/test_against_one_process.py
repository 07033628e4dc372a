"""Every plan computes what one process does."""

from __future__ import annotations

import pytest

from engines.megatron.plan import Job
from engines.megatron.spec import Spec

MODEL = {"layers": 4, "hidden": 16, "heads": 4, "sequence": 6, "vocabulary": 24, "model": "custom"}


def job(**fields):
    spec = Spec(**{**MODEL, "global_batch": 8, **fields})
    assert not list(spec.check())
    return Job.from_spec(spec)


PLANS = {
    2: [
        {"tensor": 2},
        {"pipeline": 2},
        {"data": 2, "bucket": "1 KiB"},
        {"pipeline": 2, "schedule": "gpipe", "recompute": "full"},
        {"tensor": 2, "recompute": "full", "micro_batch": 4},
        {"pipeline": 2, "global_batch": 1},
    ],
    4: [
        {"tensor": 4},
        {"pipeline": 4},
        {"data": 4},
        {"tensor": 2, "pipeline": 2},
        {"data": 2, "pipeline": 2},
        {"data": 2, "tensor": 2},
        {"pipeline": 4, "schedule": "gpipe"},
        {"tensor": 2, "pipeline": 2, "dtype": "bf16"},
    ],
}


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.timeout(300)
def test_loss_and_gradients_are_those_of_one_process(on_ranks, world):
    jobs = [job(**fields) for fields in PLANS[world]]
    answers = on_ranks(world, "agree", jobs)
    assert all(answer == answers[0] for answer in answers.values())
    for one, (loss, error) in zip(jobs, answers[0], strict=True):
        assert error < (0.1 if one.dtype == "bf16" else 1e-5), one.label
        assert 2.5 < loss < 4, one.label
    alike = [(one.global_batch, one.dtype) == (8, "fp32") for one in jobs]
    same = [loss for (loss, _), one_batch in zip(answers[0], alike, strict=True) if one_batch]
    assert max(same) - min(same) < 1e-5


def test_divided_layers_equal_whole_ones(on_ranks):
    for found in on_ranks(2, "layers").values():
        assert max(found.values()) < 1e-5, found


def test_a_plan_that_computes_something_else_is_refused(on_ranks):
    messages = on_ranks(2, "sabotaged", job(tensor=2))
    assert len(set(messages.values())) == 1
    assert messages[0].startswith("plan tp2-pp1-dp1: the gradient of '")
