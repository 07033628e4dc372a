import numpy as np
import pytest

from emulation.calibrate.discrepancy import fit_discrepancy


def test_effects_of_many_rows_are_found():
    rng = np.random.default_rng(0)
    rows = [{("group", number % 3): (1.0, 0.2)} for number in range(300)]
    truth = [0.1, -0.2, 0.0]
    residuals = [truth[number % 3] + 0.02 * rng.standard_normal() for number in range(300)]
    found = fit_discrepancy(rows, residuals, 0.02)
    assert [found.effects["group", number] for number in range(3)] == pytest.approx(truth, abs=0.01)


def test_one_row_moves_its_column_by_what_its_prior_and_the_noise_allow():
    found = fit_discrepancy([{"a": (1.0, 0.1)}], [0.01], 1.0)
    assert found.effects["a"] == pytest.approx(0.01 * 0.1**2 / (0.1**2 + 1), rel=0.6)
    assert abs(fit_discrepancy([{"a": (1.0, 1e-6)}], [0.3], 0.1).effects["a"]) < 1e-6


def test_one_run_that_went_wrong_moves_little():
    rows = [{"a": (1.0, 0.2)}] * 10
    assert fit_discrepancy(rows, [0.02] * 9 + [0.9], 0.02).effects["a"] == pytest.approx(0.02, abs=0.005)


def test_a_column_that_was_not_fitted_says_nothing():
    found = fit_discrepancy([{"a": (1.0, 0.2)}], [0.1], 0.01)
    assert found.of({"b": (1.0, 0.2)}) == 0.0
    assert found.of({"a": (2.0, 0.2)}) == pytest.approx(2 * found.effects["a"])


def test_rows_without_columns_have_no_discrepancy():
    assert fit_discrepancy([{}], [0.5], 0.1).effects == {}
