"""Every transport moving the same 1 MiB and 64 MiB tensors to another process.

Timings are for reading; what is asserted is a ratio of medians within one run, which holds on a slow machine as well.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from engines.rdma import memory, transports
from engines.rdma.session import Session
from engines.rdma.tensors import Payload, Tensor, fill
from engines.rdma.transports.one_sided import registered_bytes
from harness.api import retain_freed_memory
from harness.execution.rendezvous import FileRendezvous

RECEIVER = Path(__file__).with_name("receiver.py")
TRANSPORTS = ["zero-copy", "tcp", "grpc-stream", "grpc"]
SIZES = {"1 MiB": 2**20, "64 MiB": 64 * 2**20}
ROUNDS = 15
MARGIN = 2.0
"""By how much one-sided writes must at least beat unary gRPC; 13 to 18 is usual."""


@contextmanager
def connected(directory, name, payload):
    """A prepared sender whose receiver is another process, and the way to announce a step."""
    retain_freed_memory()
    command = [sys.executable, str(RECEIVER), str(directory), name, json.dumps(payload.to_json())]
    receiver = subprocess.Popen(command)
    try:
        with Session(SimpleNamespace(rank=0, rendezvous=FileRendezvous(directory)), 30.0) as session:
            sender = transports.open_sender(name, session, registered_bytes(payload))
            if name == "zero-copy":
                sources = sender.source_memory(payload)
            else:
                sources = [np.frombuffer(memory.anonymous(t.nbytes), np.uint8) for t in payload.tensors]
            fill(sources[0], seed=0, payload=payload.name, index=0)
            sender.prepare(payload, sources)
            yield sender, session
            session.tell(0)
            receiver.wait(30)
            sender.close()
    finally:
        receiver.kill()
        receiver.wait()


@pytest.fixture(scope="module", params=SIZES)
def size(request):
    return request.param


@pytest.fixture(scope="module")
def medians(size):
    """Transport -> median seconds of a step, of the size under way."""
    return {}


@pytest.mark.parametrize("name", TRANSPORTS)
def test_step(benchmark, tmp_path, medians, size, name):
    payload = Payload(size, (Tensor("tensor", (SIZES[size],), "uint8"),))
    steps = count(1)
    with connected(tmp_path / "board", name, payload) as (sender, session):

        def announce():
            step = next(steps)
            session.tell(step)
            session.hear("ready")
            return (step,), {}

        benchmark.group = f"one tensor of {size} to another process"
        benchmark.pedantic(sender.send, setup=announce, rounds=ROUNDS, warmup_rounds=2)
    if benchmark.stats is not None:
        medians[name] = statistics.median(benchmark.stats.stats.data)


def test_one_sided_writes_beat_grpc(benchmark, medians, size):
    if set(medians) != set(TRANSPORTS):
        pytest.skip("the transports were not timed")
    ratio = benchmark.pedantic(lambda: medians["grpc"] / medians["zero-copy"], rounds=1)
    benchmark.extra_info["grpc over zero-copy"] = round(ratio, 2)
    benchmark.group = f"ratio at {size}"
    assert ratio >= MARGIN
