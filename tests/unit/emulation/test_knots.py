import numpy as np
import pytest

from emulation.calibrate.knots import COUNTS, fit_knots, fit_table
from emulation.cost import tables


def test_knots_of_a_straight_line_lie_on_it():
    sizes = [1000 * n for n in range(1, 101)]
    knots = fit_knots(sizes, [1e-5 + size / 1e9 for size in sizes])
    assert len(knots) == min(COUNTS)
    assert [time for _, time in knots] == pytest.approx([1e-5 + size / 1e9 for size, _ in knots], rel=1e-9)


def test_small_messages_are_fitted_as_well_as_large_ones():
    sizes = [2**20 * n for n in range(1, 513)]
    true = [40e-6 + size / 200e9 + 30e-6 * min(1, size / 2**24) for size in sizes]
    noise = np.random.default_rng(1).normal(1, 0.02, len(sizes))
    made = fit_table(
        "all-reduce",
        8,
        "nvlink",
        list(zip(sizes, true * noise, strict=True)),
        grade="measured",
        source="test",
    )
    error = [abs(tables.at(made, size) / time - 1) for size, time in zip(sizes, true, strict=True)]
    assert max(error[:12]) < 0.04
    assert sum(error) / len(error) < 0.01
    assert len(made.points) < 40


def test_one_wild_row_does_not_bend_the_curve():
    sizes = [1000 * n for n in range(1, 101)]
    times = [1e-5 + size / 1e9 for size in sizes]
    wild = [time * (20 if index == 50 else 1) for index, time in enumerate(times)]
    knots = dict(fit_knots(sizes, wild, count=6))
    assert all(time == pytest.approx(1e-5 + size / 1e9, rel=0.01) for size, time in knots.items())


def test_times_that_fall_with_size_become_flat():
    knots = fit_knots([1, 2, 4, 8], [1.0, 0.9, 2.0, 3.0], count=4)
    assert [time for _, time in knots] == pytest.approx([0.95, 0.95, 2.0, 3.0], rel=0.06)
    assert knots[0][1] <= knots[1][1]


def test_order_and_repeats_do_not_matter():
    rows = [(1000 * n, 1e-5 * n) for n in range(1, 30)]
    assert fit_knots(*zip(*rows, strict=True)) == fit_knots(*zip(*rows[::-1], strict=True))
    assert fit_knots([5, 5, 5], [1.0, 2.0, 9.0]) == [(5, 2.0)]


@pytest.mark.parametrize("rows", [([], []), ([1], [0.0]), ([0], [1.0])])
def test_rows_that_are_no_times_are_refused(rows):
    with pytest.raises(ValueError, match="positive size and a positive time"):
        fit_knots(*rows)
