import pytest

from emulation.calibrate.score import Pair, score


def pairs(predicted, measured, choice=""):
    return [Pair(p, m, (0.8 * p, 1.25 * p), choice) for p, m in zip(predicted, measured, strict=True)]


def test_scores_of_a_hand_computed_example():
    found = score(pairs([1.1, 1.8, 4.5, 4.0], [1.0, 2.0, 3.0, 4.0]))
    assert (found.bias, found.mape, found.median) == pytest.approx((0.125, 0.175, 0.1))
    assert (found.p90, found.worst) == pytest.approx((0.1 + 0.7 * 0.4, 0.5))
    assert (found.tau, found.coverage) == pytest.approx((4 / 6, 0.75))
    assert found.regret is None


def test_regret_is_what_the_picked_plan_takes_longer_than_the_best():
    # Predicted best: the second plan, which takes 12 where the third takes 10.
    assert score(pairs([11, 9, 10], [11, 12, 10], "job")).regret == pytest.approx(0.2)
    assert score(pairs([11, 9, 8], [11, 12, 10], "job")).regret == 0


def test_regret_of_rates_picks_the_largest():
    assert score(pairs([11, 9], [8, 10], "job"), larger_is_better=True).regret == pytest.approx(0.25)


def test_equal_predictions_cost_the_worst_of_the_plans_they_do_not_tell_apart():
    assert score(pairs([9, 9, 10], [12, 10, 11], "job")).regret == pytest.approx(0.2)


def test_the_worst_choice_counts_and_a_choice_of_one_plan_is_none():
    both = pairs([1, 2], [3, 2], "first") + pairs([1, 2], [1, 2], "second")
    assert score(both).regret == pytest.approx(0.5)
    assert score(pairs([1], [9], "only")).regret is None


def test_order_and_coverage_of_nothing_are_none():
    found = score([Pair(1.0, 1.0)])
    assert (found.tau, found.coverage) == (None, None)
    with pytest.raises(ValueError, match="no pairs"):
        score([])
