"""Checkpoints, restarts and goodput: the walk against a SimPy job that lives through the same failures, and Daly."""

import math

import pytest
import simpy
from hypothesis import given, settings
from hypothesis import strategies as st

from emulation.evaluate import simulate
from emulation.faults import Mtbf
from emulation.graph import Workload
from emulation.recovery import Hopeless, Setback, carry_out, daly, goodput, young

HOSTS = [f"host{n}" for n in range(8)]


def simpy_job(work, failures, interval, checkpoint):
    """The slow, obvious reference: a process that works, writes checkpoints and is interrupted. -> elapsed, failures"""
    env = simpy.Environment()
    struck = []

    def job():
        saved = 0
        pause = 0
        while True:
            try:
                yield env.timeout(pause)
                pause = 0
                while saved < work:
                    part = min(interval, work - saved)
                    last = saved + part == work
                    yield env.timeout(part if last else part + checkpoint)
                    saved += part
                return env.now
            except simpy.Interrupt as failure:
                pause = failure.cause
                struck.append(env.now)

    process = env.process(job())

    def fate():
        for at, pause in failures:
            yield env.timeout(at - env.now)
            if not process.is_alive:
                return
            process.interrupt(pause)

    env.process(fate())
    return env.run(until=process), len(struck)


@given(
    st.integers(1, 500),
    st.lists(st.tuples(st.integers(1, 700), st.integers(0, 60)), max_size=8, unique_by=lambda f: f[0]),
    st.integers(1, 100),
    st.integers(0, 9),
)
@settings(deadline=None, max_examples=200)
def test_the_walk_is_what_a_simulated_job_lives_through(work, failures, interval, checkpoint):
    # No two things at one instant: all times are multiples of 16, but for the failures, each with a rest of its own.
    work, interval, checkpoint = 16 * work, 16 * interval, 16 * checkpoint
    failures = [(16 * at + rest, 16 * pause) for rest, (at, pause) in enumerate(sorted(failures), 1)]
    course = carry_out(work, [Setback(at, pause) for at, pause in failures], interval, checkpoint)
    elapsed, struck = simpy_job(work, failures, interval, checkpoint)
    assert (course.elapsed, course.failures) == (elapsed, struck)
    written = math.ceil(work / interval) - 1
    assert course.elapsed >= work + written * checkpoint + course.lost
    moments = [course.ended(moment) for moment in range(1, work + 1, 7)]
    assert moments == sorted(moments)
    assert course.ended(work) == course.elapsed
    assert all(course.started(moment) >= course.ended(moment) for moment in range(1, work, 7))


def test_a_failure_during_a_restart_begins_it_anew():
    course = carry_out(100, [Setback(50, 20), Setback(60, 20), Setback(75, 20)])
    assert (course.elapsed, course.failures, course.lost) == (195, 3, 95)


def _mtbf(**changes):
    fields = {
        "host": 8 * 3600.0,
        "checkpoint_cost": 60.0,
        "restart_cost": 300.0,
        "job": 2e6,
        "checkpoint_interval": 600.0,
    }
    written = {key: f"{value} s" if isinstance(value, float) else value for key, value in (fields | changes).items()}
    return Mtbf(kind="mtbf", **written)


@pytest.mark.parametrize("interval", [600.0, "young", "optimal", 3600.0])
def test_goodput_is_what_daly_expects(interval):
    found = goodput(_mtbf(checkpoint_interval=interval, job=2e7), HOSTS, [])
    mean, cost, restart = 3600.0, 60.0, 300.0
    assert found.mtbf == pytest.approx(mean)
    one = mean * math.exp(restart / mean) * (math.exp((found.interval + cost) / mean) - 1)
    assert found.value == pytest.approx(found.interval / one, rel=0.02)
    assert found.failures == pytest.approx(found.elapsed / mean, rel=0.05)


def test_the_optimal_interval_beats_shorter_and_longer_ones():
    best = daly(60.0, 3600.0)
    assert young(60.0, 3600.0) == pytest.approx(657.3, abs=0.1)
    assert best == pytest.approx(657.267 * (1 + math.sqrt(1 / 120) / 3 + 1 / 1080) - 60, abs=0.01)
    value = {k: goodput(_mtbf(checkpoint_interval=k * best, job=2e7), HOSTS, []).value for k in (0.3, 1, 4)}
    assert value[1] > value[0.3]
    assert value[1] > value[4]


def test_hosts_and_devices_fail_on_their_own():
    devices = [f"{host}/gpu{n}" for host in HOSTS for n in range(8)]
    both = goodput(_mtbf(device=64 * 3600.0), HOSTS, devices)
    assert both.mtbf == pytest.approx(1800.0)
    assert both.value < goodput(_mtbf(), HOSTS, devices).value


def test_goodput_depends_on_the_seed_and_a_short_job_may_be_lucky():
    assert goodput(_mtbf(), HOSTS, [], seed=1).elapsed != goodput(_mtbf(), HOSTS, [], seed=2).elapsed
    assert goodput(_mtbf(), HOSTS, []).elapsed == goodput(_mtbf(), HOSTS, []).elapsed
    assert goodput(_mtbf(job=1.0, checkpoint_interval=10.0), HOSTS, []).value == 1


@pytest.mark.parametrize("changes", [{"host": 60.0, "checkpoint_interval": 3600.0}, {"checkpoint_interval": 1e-3}])
def test_a_job_that_would_not_end_is_refused(changes):
    with pytest.raises(Hopeless, match=r"shorten the interval or the job"):
        goodput(_mtbf(**changes), HOSTS, [])


def test_a_result_has_the_goodput_beside_its_step_time(small):
    work = Workload()
    work.compute("host0/gpu0", 1e9)
    result = simulate(work, small(hosts=2), faults=[_mtbf(device=3600.0, host=None, job=1e5)])
    assert result.seconds == 1e-3
    assert result.goodput is not None
    assert result.goodput.mtbf == 450.0
    assert simulate(work, small()).goodput is None
