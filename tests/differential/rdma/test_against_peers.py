"""The same tensors through our transports and through the libraries that a user might pick instead."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from engines.rdma.tensors import Payload, Tensor
from engines.rdma.transports import gloo, mooncake, nixl
from harness.api import EnvironmentLacks

RANK = Path(__file__).with_name("peer_rank.py")
OURS = ["zero-copy", "copy", "rpc-over-rdma", "request-driven"]
LOADERS = {
    "grpc": bool, "grpc-stream": bool, "tcp": bool,
    "gloo": gloo.load_distributed, "nixl": nixl.load_nixl, "nixl-tcp": nixl.load_nixl,
    "mooncake": lambda: mooncake.load_mooncake("127.0.0.1"),
}  # fmt: skip
PAGE = 4096


def tensors():
    """Values of every kind a float can have, and lengths around words and pages."""
    made = {
        "special": np.array([[np.nan, np.inf, -np.inf, -0.0, 5e-324, 1.7e308]]),
        "half": np.random.default_rng(1).standard_normal((3, 5, 7)).astype(np.float16),
        "scalar": np.array(-1, np.int64),
        "empty": np.zeros((0, 4), np.float32),
    }
    for nbytes in (1, 7, PAGE - 1, PAGE, PAGE + 1, 2**16 + 8, 2**20 + 3):
        made[f"bytes{nbytes}"] = np.random.default_rng(nbytes).integers(0, 256, nbytes).astype(np.uint8)
    return made


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tensors")
    for name, array in tensors().items():
        array.tofile(directory / name)
    return directory


@pytest.mark.parametrize("transport", [*OURS, *LOADERS])
def test_what_arrives_are_the_bytes_that_were_sent(scratch, transport):
    try:
        LOADERS.get(transport, bool)()
    except EnvironmentLacks as error:
        pytest.skip(str(error))
    sent = tensors()
    payload = Payload("mixed", tuple(Tensor(name, array.shape, array.dtype.name) for name, array in sent.items()))
    order = {"transport": transport, "scratch": str(scratch), "payload": payload.to_json()}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(RANK), json.dumps({**order, "rank": rank})],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    try:
        output = "".join(rank.communicate(timeout=100)[0] for rank in ranks)
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    assert [rank.returncode for rank in ranks] == [0, 0], output
    for name, array in sent.items():
        received = np.fromfile(scratch / f"{name} by {transport}", array.dtype).reshape(array.shape)
        assert received.tobytes() == array.tobytes(), f"{name} by {transport}"
