import random

import pytest

from harness.measure import summarise

stats = pytest.importorskip("scipy.stats")


@pytest.mark.parametrize("n", [6, 7, 8, 9, 20, 31, 100, 999, 1001, 5000])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_the_interval_is_that_of_the_quantile_test(n, confidence):
    draw = random.Random(n)
    samples = [draw.lognormvariate(0, 1) for _ in range(n)]
    theirs = stats.quantile_test(samples, p=0.5).confidence_interval(confidence)
    ours = summarise(samples, confidence=confidence)
    assert (ours.low, ours.high) == (theirs.low, theirs.high)
