import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emulation.evaluate.sharing import fair_rates, fill, fill_arrays

RATES = st.floats(0.5, 100.0)


@st.composite
def problems(draw):
    links = draw(st.integers(1, 6))
    capacities = {link: draw(RATES) for link in range(links)}
    count = draw(st.integers(1, 12))
    demands = []
    for _ in range(count):
        used = draw(st.sets(st.integers(0, links - 1), min_size=1))
        demands.append([(link, draw(st.floats(0.25, 4.0))) for link in sorted(used)])
    caps = [draw(st.one_of(st.just(math.inf), RATES)) for _ in range(count)]
    return capacities, demands, caps


@given(problems())
@settings(deadline=None, max_examples=200)
def test_both_paths_agree(problem):
    assert fill(*problem) == pytest.approx(fill_arrays(*problem), rel=1e-12)


@given(problems())
@settings(deadline=None, max_examples=200)
def test_no_link_is_overfull_and_every_activity_has_a_bottleneck(problem):
    capacities, demands, caps = problem
    rates = fill(*problem)
    load = dict.fromkeys(capacities, 0.0)
    fastest = dict.fromkeys(capacities, 0.0)
    for demand, rate in zip(demands, rates, strict=True):
        for link, weight in demand:
            load[link] += weight * rate
            fastest[link] = max(fastest[link], rate)
    assert all(load[link] <= capacity * (1 + 1e-9) for link, capacity in capacities.items())
    for demand, rate, cap in zip(demands, rates, caps, strict=True):
        full = [n for n, _ in demand if load[n] >= capacities[n] * (1 - 1e-9) and rate >= fastest[n] * (1 - 1e-9)]
        assert full or rate == pytest.approx(cap, rel=1e-9)


@pytest.mark.parametrize(
    ("capacities", "demands", "caps", "rates"),
    [
        ({0: 9.0}, [[(0, 1.0)]] * 3, [math.inf] * 3, [3.0] * 3),
        ({0: 9.0}, [[(0, 1.0)]] * 3, [1.0, math.inf, math.inf], [1.0, 4.0, 4.0]),
        ({0: 10.0, 1: 4.0}, [[(0, 1.0)], [(0, 1.0), (1, 1.0)], [(1, 1.0)]], [math.inf] * 3, [8.0, 2.0, 2.0]),
        ({0: 10.0}, [[(0, 2.0)], [(0, 0.5)]], [math.inf] * 2, [4.0, 4.0]),
        ({0: 6.0, 1: 8.0, 2: 3.0}, [[(0, 1.0)], [(0, 1.0), (1, 1.0)], [(1, 1.0), (2, 1.0)]], [math.inf] * 3, [3.0] * 3),
        ({0: 10.0, 1: 30.0}, [[(0, 1.0), (1, 4.0)], [(0, 4.0), (1, 1.0)]], [math.inf] * 2, [2.0, 2.0]),
        ({}, [[]], [math.inf], [math.inf]),
        ({0: 0.0}, [[(0, 1.0)]], [math.inf], [0.0]),
    ],
    ids=["equal", "cap", "parking-lot", "weights", "chain", "collectives-that-cross", "no-links", "dead-link"],
)
@pytest.mark.parametrize("solver", [fill, fill_arrays])
def test_closed_forms(solver, capacities, demands, caps, rates):
    assert solver(capacities, demands, caps) == pytest.approx(rates, rel=1e-12)


def test_large_problems_take_the_array_path_and_agree():
    capacities = {link: 10.0 + link % 7 for link in range(50)}
    demands = [[(n % 50, 1.0), ((n * 7 + 1) % 50, 0.5)] for n in range(200)]
    demands = [sorted(dict(demand).items()) for demand in demands]
    caps = [math.inf if n % 3 else 0.4 for n in range(200)]
    assert fair_rates(capacities, demands, caps) == pytest.approx(fill(capacities, demands, caps), rel=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_thousand_activities_over_three_thousand_links_agree(seed):
    draw = random.Random(seed)
    capacities = {link: draw.uniform(1e9, 1e11) for link in range(3072)}
    demands = [
        [(link, draw.uniform(0.1, 2.0)) for link in sorted(draw.sample(range(3072), draw.randint(1, 6)))]
        for _ in range(1024)
    ]
    caps = [draw.uniform(1e8, 1e10) if draw.random() < 0.2 else math.inf for _ in range(1024)]
    problem = (capacities, demands, caps)
    assert fill_arrays(*problem) == pytest.approx(fill(*problem), rel=1e-12)
