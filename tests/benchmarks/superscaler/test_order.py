"""How long an interlaced order takes to find and prove; figures only, no limit on the clock is asserted."""

from __future__ import annotations

import pytest

from engines.superscaler.order import Pipeline
from engines.superscaler.order.periodic import on_grid, periodic


@pytest.mark.parametrize(("devices", "cap", "period"), [(4, 4, 10), (4, 3, 12), (8, 8, 10), (8, 7, 12)])
def test_interlaced_order_proven_optimal(benchmark, devices, cap, period):
    pipeline = Pipeline.chain([range(devices), *((device,) for device in range(devices))], 1)
    durations = {(stage, what): 1 if what == "F" else 3 for stage in range(devices + 1) for what in "FB"}
    grid = on_grid(pipeline, durations)
    found = benchmark.pedantic(periodic, (pipeline, grid, [cap] * (devices + 1), 2.0), rounds=3)
    assert found.proven
    assert found.period == period
