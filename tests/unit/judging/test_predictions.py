from __future__ import annotations

import pytest

from harness.judging.predictions import ledger, score


def pairs(make, predicted, measured, *, hardware="laptop"):
    """Records of one plan each, predicted and measured."""
    records = []
    for index, (guess, truth) in enumerate(zip(predicted, measured, strict=True)):
        plan = f"plan-{index}"
        emulated = make.value("step_time", [guess], emulated=True)
        records.append(make.record([emulated], backend="emulated", plan=plan, cell=plan))
        records.append(make.record([make.value("step_time", [truth])], plan=plan, hardware=hardware, cell=plan))
    return records


def test_the_ledger_holds_every_emulated_value_with_what_it_rests_on(make):
    found = ledger([make.transports(), make.transports(backend="emulated", hardware="pair")])
    assert len(found) == 24
    assert {p.hardware for p in found} == {"pair"}
    assert all(p.model_version == "1" and p.profile_digest and p.band for p in found)


def test_scores_of_a_hand_computed_example(make):
    # Errors: +10 %, -10 %, +50 %, 0 %. The bands reach from 0.8 to 1.25 of the prediction.
    (family,) = score(pairs(make, [1.1, 1.8, 4.5, 4.0], [1.0, 2.0, 3.0, 4.0])).families
    assert [round(p.error, 12) for p in family.pairs] == [0.1, -0.1, 0.5, 0.0]
    assert family.bias == pytest.approx(0.125)
    assert family.mape == pytest.approx(0.175)
    assert family.median == pytest.approx(0.1)
    assert family.p90 == pytest.approx(0.1 + 0.7 * 0.4)
    assert family.worst == pytest.approx(0.5)
    # Of six pairs of plans, one (the last two) is in the wrong order: (5 - 1) / 6.
    assert family.tau == pytest.approx(4 / 6)
    assert [p.covered for p in family.pairs] == [True, True, False, True]
    assert family.coverage == pytest.approx(0.75)


def test_regret_follows_the_metrics_direction(make):
    # Predicted best is the first plan; the second takes 2 instead of 3.
    (family,) = score(pairs(make, [1.0, 1.5], [3.0, 2.0])).families
    assert family.regret == pytest.approx(0.5)


def test_a_reversed_order_has_tau_minus_one(make):
    (family,) = score(pairs(make, [3.0, 2.0, 1.0], [1.0, 2.0, 3.0])).families
    assert family.tau == pytest.approx(-1)


def test_one_pair_has_no_order(make):
    (family,) = score(pairs(make, [1.0], [1.0])).families
    assert family.tau is None


def test_a_measurement_on_other_hardware_does_not_score(make):
    result = score(pairs(make, [1.0], [1.0], hardware="lab"))
    assert result.families == ()
    assert [u.reason for u in result.unscored] == ["predicted for laptop, measured only on lab"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"plan": "other"}, "no measured record has this plan"),
        ({"label": "tcp"}, "the plan was measured, but not this metric with these labels"),
    ],
)
def test_what_is_not_the_same_thing_is_not_paired(make, change, reason):
    emulated = make.value("step_time", [1.0], emulated=True, transport="shm")
    measured = make.value("step_time", [1.0], transport=change.get("label", "shm"))
    records = [
        make.record([emulated], backend="emulated", plan="p"),
        make.record([measured], plan=change.get("plan", "p")),
    ]
    result = score(records)
    assert result.pairs == ()
    assert [u.reason for u in result.unscored] == [reason]


def test_metrics_are_scored_apart(make):
    both = [make.transports(), make.transports(backend="emulated", hardware="laptop")]
    assert [f.metric for f in score(both).families] == ["bandwidth", "step_time"]


def test_a_measured_zero_has_no_relative_error(make):
    result = score(pairs(make, [1.0], [0.0]))
    assert result.pairs == ()
    assert "is 0" in result.unscored[0].reason


def test_each_hardware_has_its_own_score(make):
    def on(hardware, measured):
        plan = f"plan-{hardware}"
        emulated = make.value("step_time", [1.0], emulated=True)
        yield make.record([emulated], backend="emulated", plan=plan, cell=plan, hardware=hardware)
        yield make.record([make.value("step_time", [measured])], plan=plan, hardware=hardware, cell=plan)

    near, far = score([*on("laptop", 1.0), *on("pair", 2.0)]).families
    assert (near.hardware, near.median) == ("laptop", pytest.approx(0.0))
    assert (far.hardware, far.median) == ("pair", pytest.approx(0.5))
