"""What is said about predictions and measurements, and the profile made from single collectives."""

from __future__ import annotations

import pytest

from emulation.evaluate import simulate
from emulation.graph import Workload
from engines.superscaler.links import calibrate
from engines.superscaler.links.network import Network, Shape
from engines.superscaler.links.score import Score, table
from harness.api import HarnessError

SHAPE = Shape(200_000_000)


def test_the_error_is_relative_to_what_was_measured_and_tau_counts_pairs_in_order():
    found = Score({"a": 1.1, "b": 1.8, "c": 1.5}, {"a": 1.0, "b": 2.0, "c": 3.0})
    assert found.errors == pytest.approx({"a": 0.1, "b": -0.1, "c": -0.5})
    assert found.mape == pytest.approx(0.7 / 3)
    assert found.tau == pytest.approx((2 - 1) / 3)
    assert [row[0] for row in table(found)] == ["a", "b", "c"]


def test_a_profile_gives_back_what_it_was_made_from():
    asked = calibrate.singles(3)
    seconds = [1e-3 * len(job.ranks) + job.nbytes / 24e6 for job in asked]
    profile = calibrate.profile(3, SHAPE, asked, seconds)
    link = profile.fabric.links[0]
    assert link.efficiency.value == pytest.approx(24e6 * 8 / SHAPE.rate)
    for kind, ranks, nbytes in (("all-reduce", 2, 96 << 10), ("all-gather", 3, 1536 << 10), ("send", 2, 200_000)):
        work = Workload()
        if kind == "send":
            work.transfer("host0/cpu", "host1/cpu", nbytes)
        else:
            work.collective(kind, [f"host{n}/cpu" for n in range(ranks)], nbytes)
        assert simulate(work, profile).seconds == pytest.approx(1e-3 * ranks + nbytes / 24e6, rel=0.01)


def test_a_small_buffer_that_another_process_delayed_counts_as_the_next_larger_one():
    asked = calibrate.singles(2)
    seconds = [5e-3 if job.nbytes == calibrate.SIZES[0] else job.nbytes / 24e6 for job in asked]
    profile = calibrate.profile(2, SHAPE, asked, seconds)
    assert profile.collective_tables[0].points[0].time == pytest.approx(calibrate.SIZES[1] / 24e6)


def test_a_network_of_one_is_refused():
    with pytest.raises(HarnessError, match="2 to 200 ranks, not 1"):
        Network(1, SHAPE)
