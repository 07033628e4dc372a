import numpy as np
import pytest
from scipy import stats

from emulation import draws


def test_a_stream_depends_on_its_own_seed_entity_and_purpose():
    streams = {
        tuple(draws.uniform(seed, entity, purpose, 4))
        for seed in (0, "0", 1)
        for entity in ("host0/gpu0", "host0/gpu1")
        for purpose in ("jitter:matmul", "jitter:attention")
    }
    assert len(streams) == 12


def test_parts_of_the_key_are_kept_apart():
    assert draws.uniform(0, "a", "b:c", 1) != draws.uniform(0, "a:b", "c", 1)


@pytest.mark.parametrize("start", [0, 1, 3, 4, 5, 1000])
def test_the_nth_number_is_the_same_however_it_is_asked_for(start):
    whole = draws.uniform(7, "host0/gpu0", "x", start + 9)
    assert np.array_equal(draws.uniform(7, "host0/gpu0", "x", 9, start), whole[start:])


def test_numbers_are_those_of_philox_keyed_by_sha256():
    import hashlib

    key = np.frombuffer(hashlib.sha256(b'[3, "host0", "node death"]').digest()[:16], dtype="<u8")
    raw = np.random.Philox(key=key).random_raw(3)
    assert draws.uniform(3, "host0", "node death", 3) == pytest.approx(raw / 2.0**64, abs=1e-15)


@pytest.mark.parametrize(
    ("sample", "law"),
    [
        (lambda: draws.uniform(0, "e", "u", 4000), stats.uniform()),
        (lambda: draws.normal(0, "e", "n", 4000), stats.norm()),
        (lambda: draws.lognormal(0, "e", "l", 0.3, 4000), stats.lognorm(0.3)),
        (lambda: draws.exponential(0, "e", "x", 5.0, 4000), stats.expon(scale=5.0)),
    ],
    ids=["uniform", "normal", "lognormal", "exponential"],
)
def test_distributions_are_what_they_are_called(sample, law):
    assert stats.kstest(sample(), law.cdf).pvalue > 0.01


def test_streams_are_independent_of_one_another():
    one, other = (draws.normal(0, entity, "jitter", 4000) for entity in ("host0/gpu0", "host0/gpu1"))
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.05


def test_no_spread_is_exactly_one():
    assert np.array_equal(draws.lognormal(0, "e", "l", 0.0, 5), np.ones(5))
