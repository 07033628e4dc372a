"""The space of Aceso's plans, on profiles made up so that the best plan is plain."""

import pytest

from engines.superscaler.aceso.prediction import simulate
from engines.superscaler.aceso.profile import ATTENTION, EMBEDDING, FEED_FORWARD, HEAD, NORM, Profile, Timing, read
from engines.superscaler.aceso.space import Plan, Stage, best
from harness.api import PlanError


def profile(activations: float = 1.0, weights: float = 1.0) -> Profile:
    """Every operator takes 100 + 200 us a sequence, and tensor parallelism gains nothing."""
    operators = {
        (micro, tensor, name): Timing(100.0 * micro, 200.0 * micro, 0.5, weights, activations * micro, 0.0, 0.0)
        for micro in (1, 2, 4, 8)
        for tensor in (1, 2, 4, 8)
        for name in (EMBEDDING, *ATTENTION, *FEED_FORWARD, NORM, HEAD)
    }
    rates = ((1.0, 10.0), (8.0, 20.0))
    return Profile("350M", operators, {2: ((1.0, 0.1), (10.0, 0.5)), 4: ((1.0, 0.2),), 8: ((1.0, 0.3),)}, rates, rates)


def stage(forward: float, backward: float, received: float = 0.0, sent: float = 0.0) -> Stage:
    return Stage(0, 1, 1, 1, forward, backward, 0.0, received, sent, 0.0, 0.0)


@pytest.mark.parametrize(("stages", "micro_batches"), [(1, 5), (2, 2), (4, 9)])
def test_equal_stages_take_what_the_formula_says(stages, micro_batches) -> None:
    plan = Plan("350M", 1, micro_batches, (stage(1e6, 2e6),) * stages)
    assert simulate(plan) == pytest.approx((micro_batches + stages - 1) * 3.0)
    assert plan.seconds == pytest.approx(simulate(plan))


def test_a_slow_stage_sets_the_pace() -> None:
    plan = Plan("350M", 1, 50, (stage(1e6, 2e6, 0, 1e5), stage(2e6, 4e6, 1e5, 1e5), stage(1e6, 2e6, 1e5, 0)))
    assert simulate(plan) == pytest.approx(plan.seconds, rel=0.02)
    assert simulate(plan) >= 50 * 6.2


def test_data_parallel_beats_a_pipeline_that_gains_nothing() -> None:
    plan = best(profile(), 2, batch=8)
    assert [(one.tensor_parallel, one.data_parallel) for one in plan.stages] == [(1, 2)]
    assert all(one.again == 0 for one in plan.stages)


def test_what_does_not_fit_is_cut_into_stages_or_computed_again() -> None:
    whole = profile(weights=4.0)
    held = sum(4.0 * 8 for _ in range(24 * 13 + 3))
    plan = best(whole, 2, batch=8, limit=0.75 * held)
    assert len(plan.stages) == 2 or plan.stages[0].tensor_parallel > 1
    tight = best(profile(activations=30.0), 1, batch=8, limit=10_000.0)
    assert tight.stages[0].again > 0
    assert tight.stages[0].memory <= 10_000.0 + 1e-6
    with pytest.raises(PlanError, match="no plan of 350M fits 1 GPUs of 100 MB"):
        best(whole, 1, batch=8, limit=100.0)


def test_a_profile_says_what_it_lacks(tmp_path) -> None:
    assert profile().gradients(20.0, 2) == pytest.approx(1000.0)
    assert profile().message(4.0, across=False) == pytest.approx(400.0)
    with pytest.raises(PlanError, match=r"no all-reduce of 3, only of \[2, 4, 8\]"):
        profile().gradients(1.0, 3)
    header = "model,micro_batch,tensor_parallel,algorithm,op_name,forward-compute"
    (tmp_path / "gpt_ops.csv").write_text(header + "\n")
    with pytest.raises(PlanError, match="no profile of '7B'; there are 350M, 1_3B"):
        read(tmp_path, "7B")
