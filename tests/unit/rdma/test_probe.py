"""The figures derived from two measured sizes give those two sizes back."""

from __future__ import annotations

import pytest

from engines.rdma.probe import LARGE, SMALL, figures, read

STEPS = {
    ("zero-copy", SMALL[0]): 8e-6,
    ("tcp", SMALL[0]): 42e-6,
    ("tcp", LARGE[0]): 5.9e-3,
    ("grpc", SMALL[0]): 383e-6,
    ("grpc", LARGE[0]): 17.9e-3,
    ("grpc-stream", SMALL[0]): 203e-6,
}


def test_the_models_give_back_what_they_were_solved_for():
    found = figures(STEPS, packing=3e-3, copied=10e9)
    assert 2 * (found["one_sided.post"] + found["one_sided.completion"]) + SMALL[1] / 10e9 == pytest.approx(8e-6)
    assert 2 * found["tcp.per_message"] + LARGE[1] / found["tcp.stream"] == pytest.approx(5.9e-3)
    large_call = found["rpc.per_call"] + 2 * LARGE[1] / found["rpc.serialise"] + LARGE[1] / found["rpc.stream"]
    assert large_call == pytest.approx(17.9e-3)
    assert found["rpc.stream_message"] == 203e-6


def test_a_record_is_read_by_its_medians():
    values = [
        {"name": "step_time", "labels": {"transport": t, "payload": p}, "samples": [s, s / 2, s * 9]}
        for (t, p), s in STEPS.items()
    ]
    values.append({"name": "memcpy_bandwidth", "labels": {"payload": SMALL[0]}, "samples": [5.0, 7.0, 6.0]})
    assert read({"values": values}) == (STEPS, 6.0)
