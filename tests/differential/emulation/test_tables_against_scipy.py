"""Knots and readings against SciPy's interpolators and least squares, on a sweep with a known shape."""

import numpy as np
import pytest
from scipy.interpolate import PchipInterpolator, interp1d

from emulation.calibrate.knots import fit_knots, fit_table
from emulation.cost import tables

SIZES = 2**20 * np.arange(1, 513)
TRUE = 40e-6 + SIZES / 200e9 + 20e-6 * np.tanh(SIZES / 2**25)


@pytest.fixture(scope="module")
def noisy():
    return TRUE * np.random.default_rng(3).lognormal(0, 0.02, len(SIZES))


def error(predicted):
    return float(np.mean(np.abs(predicted / TRUE - 1)))


def test_reading_is_scipys_linear_interpolation_of_the_knots(noisy):
    made = fit_table("all-reduce", 8, "nvlink", list(zip(SIZES, noisy, strict=True)), grade="measured", source="test")
    line = interp1d([p.bytes for p in made.points], [p.time for p in made.points])
    assert [tables.at(made, size) for size in SIZES] == pytest.approx(line(SIZES).tolist(), rel=1e-12)


def test_few_fitted_knots_are_nearer_to_the_truth_than_every_row_through_pchip(noisy):
    half = np.random.default_rng(4).permutation(len(SIZES))[:256]
    half.sort()
    knots = fit_knots(SIZES[half], noisy[half])
    fitted = np.interp(SIZES, *zip(*knots, strict=True))
    inside = slice(half[0], half[-1] + 1)
    pchip = np.exp(PchipInterpolator(np.log(SIZES[half]), np.log(noisy[half]))(np.log(SIZES[inside])))
    assert np.mean(np.abs(fitted[inside] / TRUE[inside] - 1)) < 0.5 * np.mean(np.abs(pchip / TRUE[inside] - 1))
    assert len(knots) < 64


def test_the_knots_minimise_the_absolute_relative_error(noisy):
    from scipy.optimize import linprog

    knots = fit_knots(SIZES, noisy, count=8)
    sizes = np.array([size for size, _ in knots], dtype=float)
    hats = np.stack([np.interp(SIZES, sizes, unit) for unit in np.eye(len(sizes))], axis=1) / noisy[:, None]
    rows, columns = hats.shape
    # min sum e subject to -e <= 1 - H t <= e: the optimum that reweighting approaches.
    bounds = np.block([[hats, -np.eye(rows)], [-hats, -np.eye(rows)]])
    cost, right = np.r_[np.zeros(columns), np.ones(rows)], np.r_[np.ones(rows), -np.ones(rows)]
    best = linprog(cost, bounds, right, bounds=[(0, None)] * (columns + rows)).fun
    ours = np.abs(1 - hats @ np.array([time for _, time in knots])).sum()
    assert best <= ours <= 1.005 * best
