"""What holds of any measured collective table."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emulation.calibrate.knots import fit_knots
from emulation.collectives import CollectiveTable
from emulation.cost import tables

quickly = settings(deadline=None, max_examples=60)


@st.composite
def sweeps(draw):
    """Sizes rising, times never falling."""
    sizes = sorted(draw(st.sets(st.integers(1, 2**34), min_size=1, max_size=12)))
    steps = draw(st.lists(st.floats(0, 1e-2), min_size=len(sizes), max_size=len(sizes)))
    return list(zip(sizes, (np.cumsum(steps) + 1e-6).tolist(), strict=True))


def table(rows, ranks=4):
    points = [{"bytes": f"{size} B", "time": f"{time!r} s"} for size, time in rows]
    head = {"op": "all-reduce", "ranks": ranks, "link": "nvlink", "grade": "measured", "source": "test"}
    return CollectiveTable.model_validate(head | {"points": points})


@given(sweeps(), st.lists(st.floats(0, 2**36), min_size=2, max_size=20))
@quickly
def test_more_bytes_never_take_less_time_and_knots_are_exact(rows, sizes):
    made = table(rows)
    assert [tables.at(made, size) for size, _ in rows] == pytest.approx([time for _, time in rows], rel=1e-12)
    times = [tables.at(made, size) for size in sorted(sizes)]
    assert all(a <= b * (1 + 1e-12) for a, b in pairwise(times))
    assert 0 <= tables.latency(made) <= min(tables.at(made, size) for size in (0, *sizes)) * (1 + 1e-12)


@given(sweeps(), st.lists(st.floats(0, 1), min_size=1, max_size=20))
@quickly
def test_between_the_knots_it_is_numpys_interpolation(rows, parts):
    made = table(rows)
    ends = rows[0][0], rows[-1][0]
    sizes = [ends[0] + part * (ends[1] - ends[0]) for part in parts]
    expected = np.interp(sizes, *zip(*rows, strict=True))
    assert [tables.at(made, size) for size in sizes] == pytest.approx(expected.tolist(), rel=1e-9)


@given(st.floats(1e-6, 1e-1), st.floats(1, 8), st.integers(2, 64), st.integers(1, 6), st.floats(0, 1e-5))
@quickly
def test_a_group_size_between_two_is_between_their_times(fast, times, few, doublings, step):
    many, slow = few * 2**doublings, fast * times
    found = [tables.between((few, fast), (many, slow), n, step) for n in range(few, min(many, few + 20) + 1)]
    assert all(fast * (1 - 1e-9) <= one <= slow * (1 + 1e-9) for one in found)
    assert found[0] == pytest.approx(fast)
    assert tables.between((few, fast), (many, slow), 2 * many, step) >= slow


@given(sweeps(), st.integers(0, 2**32 - 1))
@quickly
def test_fitted_knots_are_a_table_whatever_the_noise(rows, seed):
    noise = np.random.default_rng(seed).lognormal(0, 0.3, len(rows))
    knots = fit_knots([size for size, _ in rows], [time * n for (_, time), n in zip(rows, noise, strict=True)])
    assert all(a[0] < b[0] and a[1] <= b[1] for a, b in pairwise(knots))
    assert all(math.isfinite(time) and time > 0 for _, time in knots)
    table(knots)
