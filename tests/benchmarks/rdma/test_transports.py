"""Zero-copy writes beside what a user would pick instead: the same tensors, in turn, in one run of the engine.

Nothing is asserted about a time. A claim about a ratio fails only where the run refutes it: the whole confidence
interval on the wrong side, on a machine that others left alone. The step times are printed at the end.
"""

from __future__ import annotations

import pytest

from engines.rdma.transports import gloo, mooncake, nixl
from harness.api import EnvironmentLacks
from harness.measure import summarise

SIZES = {"64 KiB": 2**16, "1 MiB": 2**20, "4 MiB": 2**22, "64 MiB": 2**26}
LOADERS = {
    "nixl": nixl.load_nixl, "nixl-tcp": nixl.load_nixl,
    "gloo": gloo.load_distributed, "mooncake": lambda: mooncake.load_mooncake("127.0.0.1"),
}  # fmt: skip
POLLING = ["zero-copy", "copy", "nixl"]
"""Compared in a run of their own: threads that others wake would disturb them."""
WAKING = ["zero-copy", "grpc", "grpc-stream", "tcp", "nixl-tcp", "gloo", "mooncake"]
AHEAD_OF_NIXL = ["64 KiB", "1 MiB", "4 MiB"]
OVER_GRPC = {"1 MiB": 10.0, "64 MiB": 10.0}
BEST_OVER_GRPC = 25.0
OF_COPY = 0.8


def installed(name):
    try:
        LOADERS.get(name, bool)()
    except EnvironmentLacks:
        return False
    return True


@pytest.fixture(scope="module")
def runs():
    """(size, transports) -> outcome of those that were made."""
    return {}


@pytest.fixture
def polling(benchmark, run_pair, runs, size):
    return measure(benchmark, run_pair, runs, size, POLLING)


@pytest.fixture
def waking(benchmark, run_pair, runs, size):
    return measure(benchmark, run_pair, runs, size, WAKING)


def measure(benchmark, run_pair, runs, size, wanted):
    """The outcome of a size; the benchmark times the run, whose figures are of another kind."""
    names = tuple(filter(installed, wanted))

    def run():
        if (size, names) not in runs:
            runs[size, names] = run_pair(names, size, SIZES[size])
        return runs[size, names]

    benchmark.group = f"runs of {size}"
    return benchmark.pedantic(run, rounds=1)


def told(benchmark, summary, what):
    text = f"{summary.median:.2f} [{summary.low:.2f}, {summary.high:.2f}]"
    benchmark.extra_info[what] = text
    return f"{what}: {text}"


@pytest.mark.parametrize("size", AHEAD_OF_NIXL)
def test_zero_copy_is_ahead_of_the_best_peer(benchmark, polling):
    if "nixl" not in polling:
        pytest.skip("NIXL is not installed")
    ratio = polling.ratio("nixl", "zero-copy")
    text = told(benchmark, ratio, "nixl over zero-copy")
    polling.require_quiet()
    assert ratio.high >= 1.0, text


@pytest.mark.parametrize("size", OVER_GRPC)
def test_zero_copy_is_many_times_faster_than_grpc(benchmark, waking, size):
    ratio = waking.ratio("grpc", "zero-copy")
    text = told(benchmark, ratio, "grpc over zero-copy")
    waking.require_quiet()
    assert ratio.high >= OVER_GRPC[size], text


@pytest.mark.parametrize("size", ["64 KiB"])
def test_zero_copy_is_most_ahead_of_grpc_where_tensors_are_small(benchmark, waking):
    ratio = waking.ratio("grpc", "zero-copy")
    text = told(benchmark, ratio, "grpc over zero-copy")
    waking.require_quiet()
    assert ratio.high >= BEST_OVER_GRPC, text


@pytest.mark.parametrize("size", ["64 MiB"])
def test_zero_copy_is_near_one_copy_where_tensors_are_large(benchmark, polling):
    fraction = summarise(polling.samples("zero-copy", "memcpy_fraction"))
    text = told(benchmark, fraction, "of one copy's bandwidth")
    polling.require_quiet()
    assert fraction.high >= OF_COPY, text


@pytest.mark.parametrize("size", SIZES)
def test_every_transport_is_measured(benchmark, waking):
    medians = waking.medians()
    benchmark.extra_info["microseconds"] = {name: round(seconds * 1e6, 1) for name, seconds in medians.items()}
    assert list(medians) == list(filter(installed, WAKING))
