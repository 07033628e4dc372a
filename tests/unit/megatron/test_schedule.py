"""In which order a stage works, and how much it keeps."""

from __future__ import annotations

import pytest

from engines.megatron.schedule import held, schedule


def order(kind, **places):
    return " ".join(f"{step.kind[0]}{step.micro_batch}" for step in schedule(kind, **places))


def test_the_stages_of_1f1b_run_ahead_by_the_stages_behind_them():
    orders = [order("1f1b", stage=stage, stages=3, micro_batches=4) for stage in range(3)]
    assert orders == ["f0 f1 f2 b0 f3 b1 b2 b3", "f0 f1 b0 f2 b1 f3 b2 b3", "f0 b0 f1 b1 f2 b2 f3 b3"]


def test_gpipe_goes_forward_first():
    assert order("gpipe", stage=1, stages=3, micro_batches=3) == "f0 f1 f2 b0 b1 b2"


@pytest.mark.parametrize("micro_batches", [1, 2, 5, 8])
def test_1f1b_keeps_no_more_than_the_stages_behind_and_gpipe_everything(micro_batches):
    for stage in range(4):
        places = {"stage": stage, "stages": 4, "micro_batches": micro_batches}
        assert held("1f1b", **places) == min(4 - stage, micro_batches)
        assert held("gpipe", **places) == micro_batches
