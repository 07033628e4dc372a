"""Completion times of flows that share links: ours against SimGrid's max-min model."""

import json
import math
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from emulation.evaluate.fluid import Activity, Fluids
from emulation.evaluate.sharing import fill, fill_arrays
from emulation.topology import DirectedLink

ORACLE = Path(__file__).with_name("simgrid_oracle.py")
DEBIAN = "/usr/lib/python3/dist-packages"


def _simgrid(case):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), DEBIAN]))}
    done = subprocess.run(
        [sys.executable, str(ORACLE)], input=json.dumps(case), capture_output=True, text=True, env=environment
    )
    if "No module named 'simgrid'" in done.stderr or "ImportError" in done.stderr:
        pytest.skip("SimGrid's Python module is not installed for this interpreter (Debian: python3-simgrid)")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout[done.stdout.index("[") :])


def _ours(case):
    fluids = Fluids([DirectedLink(str(n), "network", rate, 0, "measured") for n, rate in enumerate(case["capacities"])])
    ends = [0] * len(case["sizes"])
    for flow, (route, size) in enumerate(zip(case["routes"], case["sizes"], strict=True)):
        fluids.start(flow, Activity(tuple((link, 1.0) for link in route), float("inf"), float(size)), 0)
    fluids.settle(0)
    while (now := fluids.next_finish()) is not None:
        for flow in fluids.finished(now):
            ends[flow] = now
        fluids.settle(now)
    return [end / 1e12 for end in ends]


def _case(seed, flows=24, links=12):
    draw = random.Random(seed)
    return {
        "capacities": [draw.uniform(1e8, 1e9) for _ in range(links)],
        "routes": [sorted(draw.sample(range(links), draw.randint(1, 4))) for _ in range(flows)],
        "sizes": [draw.randint(10**7, 10**9) for _ in range(flows)],
    }


def _unrounded(case, solver):
    """Completion times with time as a float, so that nothing but the rates can differ."""
    left = dict(enumerate(map(float, case["sizes"])))
    capacities = dict(enumerate(case["capacities"]))
    now, ends = 0.0, {}
    while left:
        demands = [[(link, 1.0) for link in case["routes"][flow]] for flow in left]
        rates = dict(zip(left, solver(capacities, demands, [math.inf] * len(left)), strict=True))
        first = min(left, key=lambda flow: left[flow] / rates[flow])
        step = left[first] / rates[first]
        now += step
        left = {flow: size - rates[flow] * step for flow, size in left.items() if flow != first}
        ends[first] = now
    return [ends[flow] for flow in range(len(ends))]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_completion_times_agree_with_simgrid(seed):
    case = _case(seed)
    # Ours is rounded to a picosecond at every completion.
    assert _ours(case) == pytest.approx(_simgrid(case), rel=1e-9, abs=1e-10)


@pytest.mark.parametrize("solver", [fill, fill_arrays])
@pytest.mark.parametrize("size", [(24, 12), (100, 40)], ids=["24 flows", "100 flows"])
def test_fair_rates_agree_with_simgrid_to_rounding(solver, size):
    case = _case(7, *size)
    assert _unrounded(case, solver) == pytest.approx(_simgrid(case), rel=1e-12)
