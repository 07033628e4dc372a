"""What the transports of other libraries have in common, and what they say where a library is absent."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from engines.rdma.placement import PeerLost
from engines.rdma.tensors import Payload, Tensor
from engines.rdma.transports import gloo, mooncake, nixl
from engines.rdma.transports.base import POISON
from engines.rdma.transports.landing import Landing, stretch
from engines.rdma.transports.polling import poll
from harness.api import EnvironmentLacks


def session(alive=True, timeout=60.0):
    return SimpleNamespace(peer_alive=lambda: alive, timeout=timeout)


@pytest.mark.parametrize(
    ("module", "load", "install"),
    [
        ("nixl", nixl.load_nixl, "pip install --no-deps nixl nixl-cu12"),
        ("mooncake.engine", lambda: mooncake.load_mooncake("127.0.0.1"), "mooncake-transfer-engine-non-cuda"),
        ("torch.distributed", gloo.load_distributed, r"pip install 'harness\[models\]'"),
    ],
    ids=["nixl", "mooncake", "gloo"],
)
def test_an_absent_library_is_named_with_the_command_that_installs_it(monkeypatch, module, load, install):
    for name in {**nixl.AT_LOAD, **mooncake.SETTINGS, "MC_TCP_BIND_ADDRESS": ""}:
        # Registered, so that what loading sets is taken back.
        monkeypatch.setenv(name, "")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(EnvironmentLacks, match=install):
        load()


def test_the_settings_of_one_agent_do_not_outlive_its_making(monkeypatch):
    monkeypatch.setenv("UCX_TLS", "all")
    monkeypatch.delenv("UCX_MM_ERROR_HANDLING", raising=False)
    with nixl._environment(nixl.SETTINGS["nixl"]):
        assert os.environ["UCX_TLS"] == "sysv,posix,cma"
        assert os.environ["UCX_MM_ERROR_HANDLING"] == "y"
    assert os.environ["UCX_TLS"] == "all"
    assert "UCX_MM_ERROR_HANDLING" not in os.environ


def test_places_are_as_long_as_the_tensors_and_do_not_touch():
    tensors = (Tensor("a", (3, 5), "float32"), Tensor("empty", (0, 4), "float16"), Tensor("b", (7,), "int8"))
    landing = Landing(Payload("odd", tensors))
    assert [place.nbytes for place in landing.places] == [60, 0, 7]
    landing.poison()
    assert all(np.all(place == POISON) for place in landing.places)
    assert np.count_nonzero(landing.whole == POISON) == 67
    (first, nbytes), _, (last, _) = map(stretch, landing.places)
    assert nbytes == 60
    assert last >= first + 60
    assert first % 64 == last % 64 == 0


def test_polling_returns_the_first_answer():
    answers = iter([None] * 1000 + [0])
    assert poll(lambda: next(answers), session=session(), looks=3, what="x") == 0


def test_an_answer_that_came_before_the_peer_ended_is_taken():
    looks = iter([None] * 512 + [7])
    assert poll(lambda: next(looks), session=session(alive=False), looks=1, what="x") == 7


def test_polling_ends_with_the_peer_and_with_the_timeout():
    with pytest.raises(PeerLost, match="x: the other rank ended"):
        poll(lambda: None, session=session(alive=False), looks=1, what="x")
    with pytest.raises(PeerLost, match=r"x: nothing came within 0\.01 s"):
        poll(lambda: None, session=session(timeout=0.01), looks=1, what="x")
