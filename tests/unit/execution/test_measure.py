import gc

import pytest

from harness.measure import peak_memory, sample, summarise

FEW = {
    1: (1.0, 1.0, "single sample, no interval"),
    2: (1.0, 2.0, "range of 2 samples, covers the median with 50 %"),
    5: (1.0, 5.0, "range of 5 samples, covers the median with 93.75 %"),
    6: (1.0, 6.0, "order statistics 1 and 6 of 6, cover the median with 96.88 %"),
    10: (2.0, 9.0, "order statistics 2 and 9 of 10, cover the median with 97.85 %"),
}


@pytest.mark.parametrize(("n", "expected"), FEW.items(), ids=[f"{n} samples" for n in FEW])
def test_the_interval_says_what_it_covers(n, expected):
    summary = summarise([float(i) for i in range(n, 0, -1)])
    assert (summary.low, summary.high, summary.method) == expected
    assert summary.median == (n + 1) / 2
    assert summary.n == n


@pytest.mark.parametrize("samples", [[], [1.0, float("nan")]], ids=["none", "NaN"])
def test_what_cannot_be_summarised_is_refused(samples):
    with pytest.raises(ValueError, match="samples"):
        summarise(samples)


def test_warm_up_is_not_kept_and_the_collector_is_off_while_the_clock_runs():
    seen = []
    taken = sample(lambda: seen.append(gc.isenabled()), warmup=2, runs=3)
    assert seen == [True, True, False, False, False]
    assert gc.isenabled()
    assert len(taken) == 3
    assert all(seconds >= 0 for _, seconds in taken)


def test_the_collector_is_on_again_after_an_exception():
    with pytest.raises(ZeroDivisionError):
        sample(lambda: 1 / 0, warmup=0, runs=1)
    assert gc.isenabled()


def test_peak_memory_is_in_bytes():
    assert peak_memory() > 2**20
