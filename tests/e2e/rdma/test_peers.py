"""Real runs of the libraries that a user might pick instead, each rank in its own process."""

from __future__ import annotations

import re
import time
from types import SimpleNamespace

import pytest

from harness.api import EnvironmentLacks

TENSORS = {
    "odd": [("a", (3, 5), "float32"), ("b", (7,), "int8"), ("scalar", (), "float64"), ("empty", (0, 4), "float16")],
    "9 MiB": [("one", (2**20,), "float32"), ("two", (5 * 2**17,), "float64")],
}
ENOUGH = 25.0
"""Seconds within which the survivor must have ended: far below the timeout it was given."""


def load_gloo():
    from engines.rdma.transports import gloo

    gloo.load_distributed()


def load_nixl():
    from engines.rdma.transports import nixl

    nixl.load_nixl()


def load_mooncake():
    from engines.rdma.transports import mooncake

    mooncake.load_mooncake("127.0.0.1")


LOADERS = {"gloo": load_gloo, "nixl": load_nixl, "nixl-tcp": load_nixl, "mooncake": load_mooncake}


def require(transport):
    try:
        LOADERS[transport]()
    except EnvironmentLacks as error:
        pytest.skip(str(error))


@pytest.fixture(params=LOADERS)
def peer(request):
    require(request.param)
    return request.param


def test_every_peer_moves_every_tensor_beside_the_others_and_ours(launch, plan_of):
    for name in LOADERS:
        require(name)
    names = ["zero-copy", "tcp", *LOADERS]
    outcome = launch(plan_of(names, TENSORS)).finish()
    assert outcome.errors == {0: "", 1: ""}, outcome.output
    for payload in TENSORS:
        for name in names:
            labels = {"transport": name, "payload": payload}
            assert all(value > 0 for value in outcome.values("step_time", **labels))
            assert outcome.values("copies", **labels) == [0.0]


def test_one_wrong_bit_is_found_and_named_by_both_ranks(launch, plan_of, peer):
    outcome = launch(plan_of([peer], TENSORS), sabotage={1: {"corrupt": [peer]}}).finish()
    message = (
        f"HarnessError: wrong byte: transport '{peer}', payload 'odd', tensor 'b', offset 5 of 7: "
        "what arrived is not what was sent"
    )
    assert outcome.errors == {0: message, 1: message}, outcome.output
    assert outcome.measurements == []


def test_a_receiver_killed_in_a_step_ends_the_senders_wait_soon(launch, plan_of, peer):
    start = time.monotonic()
    outcome = launch(plan_of([peer], TENSORS), sabotage={1: {"die_in_step": [peer, 3]}}, timeout=100.0).finish()
    assert time.monotonic() - start < ENOUGH
    assert re.match(rf"PeerLost: {peer} odd: ", outcome.errors[0]), outcome.output


def test_a_sender_killed_between_steps_ends_the_receivers_wait_soon(launch, plan_of, peer):
    start = time.monotonic()
    outcome = launch(plan_of([peer], TENSORS), sabotage={0: {"at_sample": 2}}, timeout=100.0).finish()
    assert time.monotonic() - start < ENOUGH
    assert outcome.errors[1].startswith("PeerLost: "), outcome.output


def test_shared_memory_between_two_hosts_is_refused():
    require("nixl")
    from engines.rdma.transports.nixl import NixlSender

    with pytest.raises(EnvironmentLacks, match="both ranks on one host; use 'nixl-tcp'"):
        NixlSender(SimpleNamespace(same_host=False, rank=0), "nixl")
