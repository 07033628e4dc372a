from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import checks
from harness.checks import exit_code, judge
from harness.errors import Exit, SpecError
from harness.judging.comparison import convert, quantity
from harness.records import State

TIGHT = [0.1, 0.1001, 0.0999, 0.1, 0.1002, 0.0998, 0.1]


def scaled(factor):
    return [factor * s for s in TIGHT]


def one(make, paper, values, expectation, **where):
    """The only verdict of one record and one expectation."""
    record = make.record(values, **where)
    (verdict,) = judge(make.experiment(expect=[expectation]), [record], paper)
    return verdict


# On the paper's own hardware, every word that compares absolute values can be earned.
@pytest.mark.parametrize(
    ("factor", "word", "passed"),
    [(1.0, "matches", True), (0.8, "better", True), (1.2, "worse", False)],
    ids=["equal", "faster", "slower"],
)
def test_times_on_the_papers_hardware(make, paper, factor, word, passed):
    verdict = one(
        make,
        paper,
        [make.value("step_time", scaled(factor))],
        {"metric": "step_time", "reference": "p/t/time/exact"},
        found=make.P100,
        hardware="p100",
    )
    assert (verdict.word, verdict.passed) == (word, passed)
    assert verdict.reason


def test_higher_is_better_for_a_rate(make, paper):
    expectation = {"metric": "bandwidth", "reference": "p/t/rate/exact"}
    values = [make.value("bandwidth", [2e9, 2.01e9, 2.02e9])]
    assert one(make, paper, values, expectation, found=make.P100).word == "better"


def test_tolerance_of_the_spec_and_of_the_drawing_widen_the_match(make, paper):
    values = [make.value("step_time", scaled(1.09))]
    where = {"found": make.P100}
    assert one(make, paper, values, {"metric": "step_time", "reference": "p/t/read/off"}, **where).word == "matches"
    exact = {"metric": "step_time", "reference": "p/t/time/exact"}
    assert one(make, paper, values, exact, **where).word == "worse"
    assert one(make, paper, values, {**exact, "tolerance": "10 %"}, **where).word == "matches"


def test_an_interval_too_wide_to_tell_is_no_match(make, paper):
    values = [make.value("step_time", [0.05, 0.1, 0.5])]
    verdict = one(make, paper, values, {"metric": "step_time", "reference": "p/t/time/exact"}, found=make.P100)
    assert verdict.word == "not-comparable"
    assert "too wide" in verdict.reason


@pytest.mark.parametrize(
    "where",
    [
        {"backend": "emulated", "hardware": "p100"},
        {"backend": "local", "hardware": "laptop"},
        {"backend": "local", "hardware": "p100"},
        {"backend": "ray", "hardware": "p100"},
    ],
    ids=["emulated", "laptop", "laptop-called-p100", "ray-called-p100"],
)
def test_other_hardware_never_gets_an_absolute_word(make, paper, where):
    emulated = where["backend"] == "emulated"
    values = [make.value("step_time", [0.1], emulated=emulated)]
    verdict = one(make, paper, values, {"metric": "step_time", "reference": "p/t/time/exact"}, **where)
    assert verdict.word == "shape-only"
    assert verdict.passed is None


def test_an_emulated_value_is_not_vouched_for_by_the_machine_that_emulated_it(make, paper):
    values = [make.value("step_time", [0.1], emulated=True)]
    where = {"backend": "emulated", "hardware": "p100", "found": make.P100}
    verdict = one(make, paper, values, {"metric": "step_time", "reference": "p/t/time/exact"}, **where)
    assert verdict.word == "shape-only"


def test_the_number_of_accelerators_is_part_of_the_hardware(make, paper):
    two = {**make.P100, "gpus": make.P100["gpus"] * 2}
    values = [make.value("step_time", TIGHT)]
    verdict = one(make, paper, values, {"metric": "step_time", "reference": "p/t/time/exact"}, found=two)
    assert verdict.word == "shape-only"
    assert "2 accelerators" in verdict.reason


def test_a_device_is_matched_as_a_word(make, paper):
    other = {"gpus": [{"name": "NVIDIA XP1000"}]}
    values = [make.value("step_time", TIGHT)]
    verdict = one(make, paper, values, {"metric": "step_time", "reference": "p/t/time/exact"}, found=other)
    assert verdict.word == "shape-only"


def test_without_hardware_on_file_nothing_matches(make, paper):
    values = [make.value("step_time", TIGHT)]
    verdict = one(make, paper, values, {"metric": "step_time", "reference": "p/t/nowhere/time"}, found=make.P100)
    assert verdict.word == "shape-only"
    assert "not on file" in verdict.reason


def pair(make, factor, *, emulated=False):
    base = [1.0] if emulated else [1.0, 1.001, 0.999]
    values = [make.value("step_time", base, emulated=emulated, transport="grpc")]
    fast = [s / factor for s in base]
    return [*values, make.value("step_time", fast, emulated=emulated, transport="shm")]


RATIO = {"metric": "step_time", "where": {"transport": "shm"}, "baseline": {"transport": "grpc"}}


@pytest.mark.parametrize(
    ("factor", "reference", "word", "passed"),
    [
        (5, "speed/exact", "matches", True),
        (8, "speed/exact", "better", True),
        (3, "speed/exact", "worse", False),
        (3, "speed/most", "shape-only", True),
        (1.01, "speed/most", "shape-only", True),
        (25, "speed/most", "matches", True),
        (40, "speed/most", "better", True),
        (0.5, "speed/most", "shape-only", False),
        (3, "speed/least", "better", True),
        (1.5, "speed/least", "worse", False),
    ],
)
def test_ratios_on_the_papers_hardware(make, paper, factor, reference, word, passed):
    expectation = {**RATIO, "reference": f"p/t/{reference}"}
    verdict = one(make, paper, pair(make, factor), expectation, found=make.P100)
    assert (verdict.word, verdict.passed) == (word, passed)


@pytest.mark.parametrize("factor", [0.01, 0.5, 1.0, 1.5, 3, 24.9])
def test_below_an_upper_bound_is_never_worse(make, paper, factor):
    expectation = {**RATIO, "reference": "p/t/speed/most"}
    for found in (make.P100, make.LAPTOP):
        assert one(make, paper, pair(make, factor), expectation, found=found).word != "worse"


@pytest.mark.parametrize(("factor", "passed"), [(22, True), (3, True), (0.5, False)])
def test_shape_of_an_emulated_ratio_is_its_order(make, paper, factor, passed):
    verdict = one(
        make,
        paper,
        pair(make, factor, emulated=True),
        {**RATIO, "reference": "p/t/speed/most"},
        backend="emulated",
        hardware="pair",
    )
    assert (verdict.word, verdict.passed) == ("shape-only", passed)


def test_each_value_is_held_against_a_bound_on_its_own(make, paper):
    values = []
    for model, factor in (("a", 2), ("b", 30)):
        for transport, seconds in (("grpc", 1.0), ("shm", 1 / factor)):
            values.append(make.value("step_time", [seconds], transport=transport, payload=model))
    record = make.record(values, found=make.P100)
    experiment = make.experiment(expect=[{**RATIO, "reference": "p/t/speed/most"}])
    verdicts = judge(experiment, [record], paper)
    assert [(dict(v.where)["payload"], v.word) for v in verdicts] == [("a", "shape-only"), ("b", "better")]


def test_ratios_are_never_taken_across_targets(make, paper):
    fast = make.record([make.value("step_time", [0.1], transport="shm")], backend="local")
    slow = make.record(
        [
            make.value(
                "step_time",
                [1.0],
                transport="grpc",
            )
        ],
        backend="ray",
        hardware="lab",
    )
    (verdict, *_) = judge(make.experiment(expect=[{**RATIO, "at_least": 2}]), [fast, slow], paper)
    assert verdict.word == "not-comparable"
    assert verdict.passed is False
    assert "baseline" in verdict.reason


def test_a_baseline_may_be_another_cell_of_the_sweep(make, paper):
    records = [
        make.record([make.value("step_time", [s])], cell=t, swept={"engine.transport": t, "engine.size": 1})
        for t, s in (("grpc", 1.0), ("shm", 0.1))
    ]
    expectation = {
        "metric": "step_time",
        "where": {"engine.transport": "shm"},
        "baseline": {"engine.transport": "grpc"},
        "at_least": "9 x",
    }
    (verdict,) = judge(make.experiment(expect=[expectation]), records, paper)
    assert (verdict.word, verdict.ours.value) == ("pass", pytest.approx(10))


@pytest.mark.parametrize(
    ("expectation", "word", "reason"),
    [
        ({"metric": "step_time", "reference": "p/t/time/unknown"}, "not-comparable", "not known: illegible"),
        ({"metric": "step_time", "reference": "p/t/speed/exact"}, "not-comparable", "needs a `baseline`"),
        ({"metric": "step_time", "reference": "p/t/rate/exact"}, "not-comparable", "published figure in 'GB/s'"),
        ({"metric": "step_time", "at_most": "5 GB"}, "not-comparable", "not a unit of duration"),
        ({"metric": "step_time", "at_most": 5}, "not-comparable", "needs a unit"),
    ],
    ids=["unknown-figure", "ratio-without-baseline", "rate-for-time", "bound-in-bytes", "bound-without-unit"],
)
def test_what_cannot_be_compared_says_why(make, paper, expectation, word, reason):
    verdict = one(make, paper, [make.value("step_time", TIGHT)], expectation, found=make.P100)
    assert verdict.word == word
    assert reason in verdict.reason
    assert verdict.passed is not True


@pytest.mark.parametrize(
    ("engine", "word"),
    [({"dataset": "SST"}, "matches"), ({"dataset": "AG"}, "not-comparable"), ({}, "shape-only")],
    ids=["same-data", "other-data", "data-not-stated"],
)
def test_scores_need_the_papers_data_but_not_its_hardware(make, paper, engine, word):
    verdict = one(
        make,
        paper,
        [make.value("accuracy", [80.0])],
        {"metric": "accuracy", "reference": "p/t/score/any"},
        engine=engine,
    )
    assert verdict.word == word


@pytest.mark.parametrize(
    ("bound", "word"),
    [
        ({"at_most": "150 ms"}, "pass"),
        ({"at_most": "50 ms"}, "fail"),
        ({"at_least": "50000 us"}, "pass"),
        ({"at_least": "1 min"}, "fail"),
        ({"equals": "0.1 s"}, "pass"),
        ({"equals": "0.11 s", "tolerance": "10 %"}, "pass"),
        ({"equals": "0.11 s"}, "fail"),
        ({}, "pass"),
    ],
    ids=str,
)
def test_bounds_of_the_spec_itself(make, paper, bound, word):
    verdict = one(make, paper, [make.value("step_time", TIGHT)], {"metric": "step_time", **bound})
    assert verdict.word == word
    assert verdict.passed is (word == "pass")


@pytest.mark.parametrize(
    ("state", "code", "passed"),
    [
        (State.FAILED, Exit.FAILED, False),
        (State.CRASHED, Exit.FAILED, False),
        (State.OOM, Exit.FAILED, False),
        (State.TIMEOUT, Exit.FAILED, False),
        (State.CANCELLED, Exit.FAILED, None),
        (State.UNSUPPORTED, Exit.LACKS_NEED, None),
    ],
)
def test_a_trial_without_result_is_not_run_and_says_why(make, paper, state, code, passed):
    record = make.record(state=state, message="the reason why\nand more")
    verdicts = judge(make.experiment(expect=[{"metric": "step_time", "at_most": "1 s"}]), [record], paper)
    assert [(v.word, v.passed) for v in verdicts] == [("not-run", passed)]
    assert verdicts[0].reason == f"trial default: {state}: the reason why"
    assert exit_code(verdicts, [record]) is code


def test_values_before_a_failure_are_kept_but_not_judged(make, paper):
    record = make.record([make.value("step_time", TIGHT)], state=State.TIMEOUT)
    (verdict,) = judge(make.experiment(expect=[{"metric": "step_time", "at_most": "1 s"}]), [record], paper)
    assert verdict.word == "not-run"


def test_an_expectation_for_a_backend_that_did_not_run_is_not_missed(make, paper):
    record = make.record([make.value("step_time", TIGHT)])
    verdicts = judge(make.experiment(expect=[{"metric": "step_time", "on": "ray", "at_most": "1 us"}]), [record], paper)
    assert [v.word for v in verdicts] == ["not-run"]
    assert exit_code(verdicts, [record]) is Exit.OK


@pytest.mark.parametrize(
    ("expectation", "hint"),
    [
        ({"metric": "step_tme"}, "did you mean 'step_time'"),
        ({"metric": "step_time", "where": {"transprt": "shm"}}, "did you mean 'transport'"),
        ({"metric": "step_time", "where": {"transport": "smh"}}, "there are grpc, shm"),
    ],
)
def test_an_expectation_that_selects_nothing_is_missed_with_a_hint(make, paper, expectation, hint):
    record = make.record(pair(make, 2))
    verdicts = judge(make.experiment(expect=[expectation]), [record], paper)
    assert [(v.word, v.passed) for v in verdicts] == [("not-run", False)]
    assert hint in verdicts[0].reason
    assert exit_code(verdicts, [record]) is Exit.FAILED


def test_only_required_expectations_change_the_exit_code(make, paper):
    record = make.record([make.value("step_time", TIGHT)])
    for required, code in ((True, Exit.FAILED), (False, Exit.OK)):
        expectation = {"metric": "step_time", "at_most": "1 us", "required": required}
        verdicts = judge(make.experiment(expect=[expectation]), [record], paper)
        assert exit_code(verdicts, [record]) is code


def test_something_unsupported_beside_something_run_is_no_failure(make, paper):
    records = [make.record([make.value("step_time", TIGHT)]), make.record(state=State.UNSUPPORTED, hardware="lab")]
    assert exit_code([], records) is Exit.OK


def test_a_reference_that_does_not_exist_is_a_mistake_of_the_spec(make, paper):
    record = make.record([make.value("step_time", TIGHT)])
    with pytest.raises(SpecError, match="did you mean 'time'"):
        judge(make.experiment(expect=[{"metric": "step_time", "reference": "p/t/tme/exact"}]), [record], paper)


@given(
    seconds=st.floats(1e-9, 1e9),
    tolerance=st.floats(0, 10),
    path=st.sampled_from(
        ["time/exact", "read/off", "speed/exact", "speed/most", "speed/least", "score/any", "nowhere/time"]
    ),
    baseline=st.booleans(),
    machine=st.sampled_from(["P100", "LAPTOP"]),
)
def test_no_emulated_value_ever_matches(make, paper, seconds, tolerance, path, baseline, machine):
    name = "accuracy" if path == "score/any" else "step_time"
    values = [
        make.value(name, [seconds], emulated=True, transport="shm"),
        make.value(name, [1.0], emulated=True, transport="grpc"),
    ]
    record = make.record(
        values, backend="emulated", hardware="P100", found=getattr(make, machine), engine={"dataset": "SST"}
    )
    expectation = {
        "metric": name,
        "where": {"transport": "shm"},
        "reference": f"p/t/{path}",
        "tolerance": tolerance,
        "baseline": {"transport": "grpc"} if baseline else {},
    }
    for verdict in judge(make.experiment(expect=[expectation]), [record], paper):
        assert verdict.word in (checks.Word.SHAPE_ONLY, checks.Word.NOT_COMPARABLE)


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        ("5 ms", "s", 0.005),
        ("2 GB/s", "B/s", 2e9),
        ("10 x", "x", 10),
        ("10x", "x", 10),
        (10, "x", 10),
        ("80 %", "%", 80),
    ],
)
def test_bounds_are_read_in_the_metrics_unit(value, unit, expected):
    assert quantity(value, unit) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "unit", "to", "expected"),
    [(5, "ms", "s", 0.005), (84.2, "%", "", 0.842), (0.842, "", "%", 84.2), (1, "x", "s", None), (1, "s", "B", None)],
)
def test_published_figures_are_converted_or_refused(value, unit, to, expected):
    assert convert(value, unit, to) == (None if expected is None else pytest.approx(expected))
