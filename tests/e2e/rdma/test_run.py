"""Real runs of both ranks, each in its own process."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from harness.api import HarnessError

ON_DEVICE = ["zero-copy", "copy", "rpc-over-rdma", "request-driven"]
TRANSPORTS = [*ON_DEVICE, "grpc", "grpc-stream", "tcp"]
COPIES = {
    "zero-copy": [0.0], "copy": [1.0], "rpc-over-rdma": [8.0], "request-driven": [0.0],
    "grpc": [5.0], "grpc-stream": [5.0], "tcp": [0.0],
}  # fmt: skip
TENSORS = {
    "odd": [("a", (3, 5), "float32"), ("b", (7,), "int8"), ("scalar", (), "float64"), ("empty", (0, 4), "float16")],
    "9 MiB": [("one", (2**20,), "float32"), ("two", (5 * 2**17,), "float64")],
}
ENOUGH = 15.0
"""Seconds within which the survivor must have ended: far below the timeout it was given."""


def files_of_ours():
    shared = Path("/dev/shm")
    return {path.name for path in shared.iterdir() if "rdma" in path.name} if shared.is_dir() else set()


def test_every_transport_moves_every_tensor_and_is_measured(launch, plan_of):
    outcome = launch(plan_of(TRANSPORTS, TENSORS), runs=3).finish()
    assert outcome.errors == {0: "", 1: ""}
    assert outcome.output == ""
    for payload, nbytes in (("odd", 75), ("9 MiB", 9 * 2**20)):
        assert len(outcome.values("memcpy_bandwidth", payload=payload)) == 3
        for transport in TRANSPORTS:
            labels = {"transport": transport, "payload": payload}
            times, rates = outcome.values("step_time", **labels), outcome.values("bandwidth", **labels)
            assert len(times) == 3
            assert all(rate == pytest.approx(nbytes / t) for rate, t in zip(rates, times, strict=True))
            assert all(value > 0 for value in outcome.values("memcpy_fraction", **labels))


def test_copies_are_counted_and_one_sided_writes_make_none(launch, plan_of):
    outcome = launch(plan_of(TRANSPORTS, TENSORS)).finish()
    for payload in TENSORS:
        found = {t: outcome.values("copies", transport=t, payload=payload) for t in TRANSPORTS}
        assert found == COPIES


@pytest.mark.parametrize("signal", ["tail", "imm", "debug"])
def test_every_signal_carries_a_static_placement(launch, plan_of, signal):
    outcome = launch(plan_of(["zero-copy", "copy"], TENSORS, signal=signal), provider="shm").finish()
    assert outcome.errors == {0: "", 1: ""}
    assert outcome.values("copies", transport="zero-copy", payload="odd") == [0.0]


def test_a_dynamic_placement_copies_no_more_than_a_static_one(launch, plan_of):
    outcome = launch(plan_of(["zero-copy", "copy"], TENSORS, placement="dynamic")).finish()
    assert outcome.errors == {0: "", 1: ""}
    for payload in TENSORS:
        assert outcome.values("copies", transport="zero-copy", payload=payload) == [0.0]
        assert outcome.values("copies", transport="copy", payload=payload) == [1.0]


def test_a_provider_that_this_machine_lacks_is_refused_by_both_ranks_with_the_reason(launch, plan_of):
    from engines.rdma.providers import open_device

    try:
        open_device("verbs", 4096).close()
    except HarnessError as error:
        reason = str(error)
    else:
        pytest.skip("this machine has an RDMA device")
    outcome = launch(plan_of(["zero-copy"], TENSORS), provider="verbs").finish()
    expected = f"EnvironmentLacks: provider 'verbs' cannot be used: rank 0: {reason}; rank 1: {reason}"
    assert outcome.errors == {0: expected, 1: expected}


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_one_wrong_bit_is_found_and_named_by_both_ranks(launch, plan_of, transport):
    outcome = launch(plan_of(TRANSPORTS, TENSORS), sabotage={1: {"corrupt": [transport]}}).finish()
    message = (
        f"HarnessError: wrong byte: transport '{transport}', payload 'odd', tensor 'b', offset 5 of 7: "
        "what arrived is not what was sent"
    )
    assert outcome.errors == {0: message, 1: message}
    assert outcome.measurements == []


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_receiver_killed_in_a_step_ends_the_senders_wait_soon(launch, plan_of, transport):
    before = files_of_ours()
    start = time.monotonic()
    outcome = launch(
        plan_of([transport], TENSORS), sabotage={1: {"die_in_step": [transport, 3]}}, timeout=60.0
    ).finish()
    assert time.monotonic() - start < ENOUGH
    assert re.match(rf"PeerLost: .*{transport}", outcome.errors[0])
    assert files_of_ours() == before


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_sender_killed_between_steps_ends_the_receivers_wait_soon(launch, plan_of, transport):
    before = files_of_ours()
    start = time.monotonic()
    outcome = launch(plan_of([transport], TENSORS), sabotage={0: {"at_sample": 2}}, timeout=60.0).finish()
    assert time.monotonic() - start < ENOUGH
    assert outcome.errors[1].startswith("PeerLost: ")
    assert files_of_ours() == before


def test_a_rank_that_never_comes_is_named(launch, plan_of):
    pair = launch(plan_of(["tcp"], TENSORS), timeout=1.0)
    pair.processes[1].kill()
    assert re.match(r"PeerLost: rank 1 .*", pair.finish().errors[0])
