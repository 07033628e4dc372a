"""Calibration: fits that find what was put in and say what they cannot find, and the profile they make."""

import json
import os
import re

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from emulation.calibrate import describe, fit
from emulation.calibrate.measure import PROBES, Measurement, UnknownProbe, digest, measure
from emulation.calibrate.pool import ENVIRONMENT, Pool, ProbeError
from emulation.calibrate.sampling import Case, Series, sweep
from emulation.cost.compute import kernel
from emulation.evaluate import simulate
from emulation.graph import Workload
from emulation.profile import Profile

SIZES = 2.0 ** np.arange(8, 26)
MIB = 2**20


@settings(max_examples=25, deadline=None)
@given(alpha=st.floats(1e-6, 1e-3), beta=st.floats(1e8, 1e11))
def test_a_latency_and_a_bandwidth_are_found_again(alpha, beta):
    found = fit.alpha_beta(SIZES, alpha + SIZES / beta)
    told = {name for name in ("alpha", "beta") if name not in found.unidentified}
    expected = {"alpha": alpha, "beta": beta}
    assert told
    assert all(found.parameters[name] == pytest.approx(expected[name], rel=0.02) for name in told)


def test_a_latency_that_no_size_shows_is_reported():
    sizes = SIZES[-4:]
    found = fit.alpha_beta(sizes, 1e-8 + sizes / 1e9)
    assert set(found.unidentified) == {"alpha"}
    assert found.parameters["beta"] == pytest.approx(1e9, rel=0.02)


def test_one_group_size_does_not_tell_a_base_from_a_step():
    few = [(n, s, 1e-4 + 2 * (n - 1) * (5e-5 + s / n / 2e9)) for n in (2,) for s in SIZES]
    many = [(n, s, 1e-4 + 2 * (n - 1) * (5e-5 + s / n / 2e9)) for n in (2, 3, 4) for s in SIZES]
    assert {"base", "step"} <= set(fit.ring(*zip(*few, strict=True)).unidentified)
    found = fit.ring(*zip(*many, strict=True))
    assert not found.unidentified
    assert found.parameters == pytest.approx({"base": 1e-4, "step": 5e-5, "rate": 2e9}, rel=0.02)


@settings(max_examples=10, deadline=None)
@given(launch=st.floats(3e-6, 3e-5), peak=st.floats(1e10, 1e12), half=st.floats(1e5, 1e7))
def test_a_rising_rate_is_found_again(launch, peak, half):
    work = 10.0 ** np.arange(4, 9.5, 0.25)
    true = launch + work / (peak * work / (work + half))
    found = fit.rate_curve(work, true, rising=True)
    assert max(found.decades.values()) < 0.15
    rates = [rate for _, rate in found.knots]
    assert rates == sorted(rates)


def test_a_falling_rate_has_its_knots_where_time_is_not_all_launch():
    work = 2.0 ** np.arange(9, 25, 2)
    true = 5e-6 + work / np.where(work < MIB, 4e10, 1e10)
    found = fit.rate_curve(work, true, rising=False)
    rates = [rate for _, rate in found.knots]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == pytest.approx(4e10, rel=0.15)
    assert rates[-1] == pytest.approx(1e10, rel=0.1)
    assert found.parameters["launch"] == pytest.approx(5e-6, rel=0.15)
    assert found.knots[0][0] == work[0]


def test_one_outlier_hardly_moves_a_fit():
    times = 1e-5 + SIZES / 1e9
    times[5] *= 10
    assert fit.alpha_beta(SIZES, times).parameters["beta"] == pytest.approx(1e9, rel=0.05)


def test_a_pooled_alpha_beta_fit_lies_about_small_messages():
    # Small messages travel by another protocol: cheap to start, a quarter of the bandwidth. The sizes are those of
    # many published tables, spread evenly, so that nearly all are large.
    sizes = np.arange(1, 1025) * float(MIB)
    times = np.minimum(2e-5 + sizes / 60e9, 2.5e-4 + sizes / 230e9)
    small = sizes <= 16 * MIB
    slope, intercept = np.polyfit(sizes, times, 1)
    pooled = np.abs((intercept + slope * sizes) / times - 1)
    geometric = 2.0 ** np.arange(20, 31)
    knots, _ = fit.table([int(s) for s in geometric], np.interp(geometric, sizes, times))
    read = np.abs(np.interp(sizes, *zip(*knots, strict=True)) / times - 1)
    assert pooled.mean() < 0.1
    assert np.median(pooled[small]) > 0.5
    assert np.median(read[small]) < 0.03
    relative = fit.alpha_beta(geometric, np.interp(geometric, sizes, times))
    by_hand = np.abs((relative.parameters["alpha"] + sizes / relative.parameters["beta"]) / times - 1)
    assert by_hand[small].mean() < pooled[small].mean() / 2


def test_errors_are_given_by_decade():
    assert fit.by_decade([10, 20, 2000], np.log([1.1, 1.1, 1.5])) == pytest.approx({"1e1": 0.1, "1e3": 0.5})


def test_a_table_never_falls():
    knots, left_out = fit.table([1, 2, 4, 8], [1.0, 3.0, 2.0, 4.0])
    times = [time for _, time in knots]
    assert times == sorted(times)
    assert len(left_out) == 2


def test_drift_is_flagged_and_steadiness_is_not():
    assert Series("p", {}, [1.0] * 9 + [1.2] * 9).drifted
    assert not Series("p", {}, [1.0, 1.01, 0.99] * 6).drifted
    assert Series("p", {}, [1.0, 1.0, 5.0]).median == 1.0


def test_a_sweep_takes_its_cases_in_turns():
    order = []
    cases = [Case({"n": n}, lambda n=n: order.append(n), repeats=1) for n in range(3)]
    found = sweep("p", cases, rounds=4, warmups=0)
    rounds = [sorted(order[k : k + 3]) for k in range(0, 12, 3)]
    assert rounds == [[0, 1, 2]] * 4
    assert [len(series.samples) for series in found] == [4, 4, 4]


def _fail(worker, *, how):
    if how == "raise":
        raise ValueError("on purpose")
    os._exit(7)


def _name(worker):
    worker.meet(worker.count)
    return worker.rank, os.environ["OMP_NUM_THREADS"]


def test_workers_answer_and_failures_are_named(tmp_path):
    with Pool(2, str(tmp_path)) as pool:
        assert pool.run(_name, 2) == [(0, "1"), (1, "1")]
        with pytest.raises(ProbeError, match="on purpose"):
            pool.run(_fail, how="raise")
        with pytest.raises(ProbeError, match="exit code 7"):
            pool.run(_fail, how="exit")
        processes = pool._processes
    assert not any(process.is_alive() for process in processes)
    assert os.environ.get("MALLOC_MMAP_MAX_") is None
    assert ENVIRONMENT["OMP_NUM_THREADS"] == "1"


def test_an_unknown_probe_names_the_nearest():
    with pytest.raises(UnknownProbe) as caught:
        measure(["memcopy"])
    assert caught.value.suggestion == "memcpy"
    assert all(re.fullmatch("[a-z]+", name) for name in PROBES)


def _measured(*, torch=True):
    """A machine that obeys the models exactly."""
    found = Measurement(started="2026-11-24T12:00:00+00:00")
    found.machine = {
        "machine": "x86_64",
        "processor": "made up",
        "cores": 2,
        "memory_bytes": 2**34,
        "page_bytes": 4096,
        "system": "6.1",
        "load_average": [0.0, 0.0, 0.0],
    }
    add = found.series.append
    for power in range(12, 27, 2):
        nbytes = 2**power
        for processes in (1, 2):
            labels = {"bytes": nbytes, "processes": processes}
            add(Series("memcpy", labels, [nbytes / (1e10 if power < 20 else 5e9)] * 6))
    for nbytes in (64, 1024, 2**18, 2**22):
        add(Series("tcp", {"bytes": nbytes}, [1e-5 + nbytes / 3e9] * 6))
    probe = "operators" if torch else "gemm"
    for flops in 10.0 ** np.arange(4, 9.1, 0.5):
        labels = {"family": "matmul", "shape": "m", "flops": float(flops), "bytes": 1.0, "processes": 1}
        add(Series(probe, labels, [1e-5 + float(flops) / 1e11] * 6))
    if torch:
        for nbytes in 4.0 ** np.arange(5, 13):
            labels = {"family": "softmax", "shape": "n", "flops": 0.0, "bytes": float(nbytes), "processes": 1}
            add(Series(probe, labels, [6e-6 + float(nbytes) / 1.2e10] * 6))
        for processes, slow in ((1, 1.0), (2, 1.5)):
            labels = {"family": "softmax", "flops": 0.0, "bytes": 1e6, "processes": processes}
            add(Series("contention", labels, [1e-3 * slow] * 6))
        for ranks in (2, 3, 4):
            for op in ("send", "all-reduce") if ranks == 2 else ("all-reduce",):
                for nbytes in 4 ** np.arange(4, 12):
                    labels = {"op": op, "ranks": ranks, "bytes": int(nbytes), "link": "cpu"}
                    add(Series("gloo", labels, [1e-4 * ranks + float(nbytes) * 1e-9 * ranks] * 6))
    return found


def test_a_profile_is_written_that_reads_back_equal():
    made, raw = describe.document(_measured(), "box", file="box.calibration.json")
    text = describe.to_yaml(made)
    profile = Profile.model_validate(yaml.safe_load(text))
    assert profile == Profile.model_validate(made)
    assert describe.to_yaml(yaml.safe_load(text)) == text
    assert profile.calibration.digest == digest(raw)
    assert json.loads(raw)["fits"]["matmul"]["held_out_log_residuals"].keys() == {"q10", "q50", "q90"}
    assert {r.family for r in profile.residuals} == {"compute", "p2p"}
    assert all("harness calibrate" in profile.sources[f.source] for _, f in profile.figures() if f.grade == "measured")


def test_the_profile_predicts_what_was_measured():
    made, _ = describe.document(_measured(), "box", file="f")
    profile = Profile.model_validate(made)
    work = Workload()
    ranks = ["host0/proc0", "host0/proc1"]
    work.compute("host0/proc0", 1e8, family="matmul")
    product = simulate(work, profile)
    assert product.seconds == pytest.approx(1e-5 + 1e8 / 1e11, rel=0.02)
    assert product.grade == "measured"
    work = Workload()
    work.compute("host0/proc0", 0.0, 2**20, family="softmax")
    assert simulate(work, profile).seconds == pytest.approx(6e-6 + 2**20 / 1.2e10, rel=0.05)
    work = Workload()
    work.collective("all-reduce", ranks, 4**8)
    assert simulate(work, profile).seconds == pytest.approx(2e-4 + 4**8 * 2e-9, rel=0.02)
    work = Workload()
    assert profile.models["cpu"].memory_bandwidth.rate(2**27) == pytest.approx(2 * 2 * 5e9, rel=0.01)
    assert profile.models["process"].memory_bandwidth.rate(2**27) == pytest.approx(2 * 5e9, rel=0.01)
    work.transfer(*ranks, 4**8)
    assert simulate(work, profile).seconds == pytest.approx(2e-4 + 4**8 * 2e-9, rel=0.05)
    assert profile.models["process"].compute["fp32"].families["softmax"].contention.value == pytest.approx(1.5)


def test_a_backward_pass_without_figures_of_its_own_has_those_of_its_forward_pass():
    made, _ = describe.document(_measured(), "box", file="f")
    model = Profile.model_validate(made).models["process"]
    work = Workload()
    for family in ("softmax", "softmax-backward", "unheard-of"):
        work.compute("host0/proc0", 0.0, 2**16, family=family)
    forward, backward, other = (kernel(node, model).fixed for node in work.nodes)
    assert forward == backward != other


def test_without_torch_numpy_makes_a_profile():
    found = _measured(torch=False)
    found.skipped["rpc"] = "gRPC is not installed: pip install 'harness[rdma]'"
    made, _ = describe.document(found, "box", file="f")
    profile = Profile.model_validate(made)
    assert "gRPC is not installed" in profile.sources["laptop-rpc"]
    assert profile.hosts[0].software.rpc.per_call.grade == "prior"
    assert list(profile.models["process"].compute["fp32"].families) == ["matmul"]


def test_too_few_probes_make_no_profile():
    found = _measured()
    found.series = [series for series in found.series if series.probe != "tcp"]
    with pytest.raises(describe.NotEnough, match="tcp"):
        describe.document(found, "box", file="f")


def test_a_gpu_that_was_measured_is_described():
    found = _measured()
    found.machine["gpus"] = [{"name": "made up", "memory_bytes": 2**35}] * 2
    add = found.series.append
    add(Series("gpu-launch", {"what": "launch"}, [4e-6] * 6))
    for nbytes in 4 ** np.arange(6, 14):
        for what, rate in (("h2d", 2e10), ("d2h", 2e10), ("d2d", 1e12)):
            add(Series("gpu-copy", {"what": what, "bytes": int(nbytes)}, [5e-6 + float(nbytes) / rate] * 6))
        labels = {"op": "all-reduce", "ranks": 2, "bytes": int(nbytes), "link": "nvlink"}
        add(Series("nccl", labels, [2e-5 + float(nbytes) / 1e11] * 6))
    for dtype in ("float32", "bfloat16"):
        for flops in 10.0 ** np.arange(8, 12):
            add(Series("gpu-gemm", {"dtype": dtype, "flops": float(flops)}, [1e-5 + float(flops) / 1e14] * 6))
    made, _ = describe.document(found, "box", file="f")
    profile = Profile.model_validate(made)
    assert profile.capabilities().gpus == 2
    work = Workload()
    work.transfer("host0/cpu", "host0/gpu1", 2**26)
    assert simulate(work, profile).seconds == pytest.approx(5e-6 + 2**26 / 2e10, rel=0.25)
