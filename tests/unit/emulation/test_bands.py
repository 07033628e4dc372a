import math

import numpy as np
import pytest
from pydantic import ValidationError

from emulation.band import combined, width
from emulation.calibrate.residuals import out_of_fold, stretches
from emulation.evaluate import simulate
from emulation.graph import Workload
from emulation.residuals import Residuals, spread_at

GPU = "host0/gpu0"


def test_one_part_has_its_own_width():
    assert combined({("compute", "prior", None): 1.0}) == pytest.approx(width("compute", "prior"))
    assert combined({("compute", "prior", (0.01, 0.02)): 0.5}) == pytest.approx((0.005, 0.01))


def test_errors_of_one_family_go_together_and_those_of_two_do_not():
    together = {("collective", "measured", (0.1, 0.1)): 0.5, ("collective", "measured", (0.3, 0.1)): 0.5}
    apart = {("collective", "measured", (0.1, 0.1)): 0.5, ("compute", "measured", (0.3, 0.1)): 0.5}
    assert combined(together) == pytest.approx((0.2, 0.1))
    assert combined(apart) == pytest.approx((math.hypot(0.05, 0.15), math.hypot(0.05, 0.05)))


def residuals(family, grade="measured", low=-0.05, high=0.2):
    rows = [{"least": 1e9, "most": 1e12, "q10": low, "q90": high, "count": 20}]
    return {"family": family, "grade": grade, "source": "test", "stretches": rows}


def band(profile, flops=1e10):
    work = Workload()
    work.compute(GPU, flops, name="kernel")
    result = simulate(work, profile)
    low, high = result.band()
    return math.log(result.seconds / low), math.log(high / result.seconds)


def test_a_profiles_residuals_take_the_place_of_the_grades_width(small):
    assert band(small()) == pytest.approx((0.10, 0.10))
    assert band(small(residuals=[residuals("compute")])) == pytest.approx((0.05, 0.2))
    assert band(small(residuals=[residuals("compute")]), flops=1e13) == pytest.approx((0.1, 0.4))
    assert band(small(residuals=[residuals("memory")])) == pytest.approx((0.10, 0.10))


def test_residuals_of_measured_figures_say_nothing_of_weaker_ones(small, document):
    models = document()["models"]
    models["gpu"]["launch"] = {"value": "1 us", "grade": "prior", "source": "test"}
    assert band(small(models=models, residuals=[residuals("compute")])) == pytest.approx(width("compute", "prior"))
    assert band(small(models=models, residuals=[residuals("compute", "prior")])) == pytest.approx((0.05, 0.2))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ([residuals("compute", low=0.1)], "less than or equal to 0"),
        ([residuals("compute"), residuals("compute")], "compute"),
        ([residuals("compute") | {"source": "nowhere"}], "is not in `sources`"),
        ([residuals("compute") | {"stretches": residuals("compute")["stretches"] * 2}], "rising stretches"),
    ],
)
def test_mistakes_in_residuals_are_named(small, changed, message):
    with pytest.raises(ValidationError, match=message):
        small(residuals=changed)


def test_quantiles_of_nine_rows_are_their_ends():
    (found,) = stretches(range(1, 10), [0.01 * n for n in range(-4, 5)])
    assert (found.least, found.most, found.count) == (1, 9, 9)
    assert (found.q10, found.q90) == pytest.approx((-0.04, 0.04))


def test_a_model_that_is_always_too_fast_still_lies_in_its_band():
    (found,) = stretches(range(1, 10), [0.1] * 9)
    assert (found.q10, found.q90) == (0.0, pytest.approx(0.1))


def test_small_and_large_work_are_kept_apart():
    work = np.geomspace(1e3, 1e9, 200)
    rng = np.random.default_rng(1)
    wide = np.where(work < 1e5, 0.2, 0.01) * rng.standard_normal(200)
    found = stretches(work.tolist(), wide.tolist())
    assert all(one.count >= 9 for one in found)
    assert sum(one.count for one in found) == 200
    assert spread_at(found, 1e4)[1] > 0.1 > 0.03 > spread_at(found, 1e8)[1]


def test_equal_work_stays_in_one_stretch():
    found = stretches([1.0] * 20 + [10.0] * 20, [0.1] * 40)
    assert [(one.least, one.most) for one in found] == [(1, 1), (10, 10)]


def test_eight_of_ten_new_rows_lie_in_the_band():
    rng = np.random.default_rng(7)
    covered = []
    for _ in range(200):
        seen, new = rng.standard_t(3, 60), rng.standard_t(3, 60)
        (found,) = stretches([1.0] * 60, seen.tolist())
        covered.append(np.mean((new >= found.q10) & (new <= found.q90)))
    assert np.mean(covered) == pytest.approx(0.80, abs=0.01)


def test_no_row_helps_to_predict_itself():
    seen = []

    def predict(fit, out):
        assert not set(fit) & set(out)
        seen.extend(out)
        return [10.0 * row for row in out]

    assert out_of_fold(12, predict) == [10.0 * row for row in range(12)]
    assert sorted(seen) == list(range(12))


def test_nothing_gives_no_residuals():
    with pytest.raises(ValueError, match="need rows"):
        stretches([], [])
    with pytest.raises(ValueError, match="no residuals"):
        spread_at([], 1.0)


def test_a_stretch_keeps_to_its_side_of_zero():
    with pytest.raises(ValidationError):
        Residuals(least=1, most=2, q10=-0.1, q90=-0.05, count=3)
