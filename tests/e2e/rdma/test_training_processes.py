"""Training jobs whose ranks are processes: equal to a single process, copies counted, and nobody hangs."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("torch")

from engines.rdma.training.plan import payload
from engines.rdma.training.settings import Training

RANK = Path(__file__).with_name("training_rank.py")
FROM_TRANSFORMERS = ("bert-base", "gpt2-small")
COPIES = {"zero-copy": 0, "copy": 1, "request-driven": 0, "rpc-over-rdma": 8.5, "grpc": 5.5, "gloo": 1}


class Run:
    def __init__(self, scratch, training, transports, *, dies=None, timeout=60.0):
        self.scratch = scratch
        plan = dict(payload(training, transports, "auto"))
        self.processes = []
        for rank in range(training.ranks):
            order = {
                "plan": plan, "rank": rank, "ranks": training.ranks, "scratch": str(scratch), "timeout": timeout,
                "dies_at": 3 if rank == dies else 0,
            }  # fmt: skip
            command = [sys.executable, str(RANK), json.dumps(order)]
            with self.log(rank).open("w") as log:
                self.processes.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT))

    def log(self, rank):
        return self.scratch / f"log{rank}"

    def finish(self):
        deadline = time.monotonic() + 100
        # All are asked in turn: a process that was killed is there, as a zombie, until somebody asks for it.
        while any([process.poll() is None for process in self.processes]) and time.monotonic() < deadline:  # noqa: C419
            time.sleep(0.05)
        for process in self.processes:
            process.kill()
            process.wait()
        self.output = [self.log(rank).read_text() for rank in range(len(self.processes))]
        path = self.scratch / "found0.json"
        self.found = json.loads(path.read_text()) if path.exists() else []
        return self

    def value(self, name, transport):
        found = [m["values"] for m in self.found if m["name"] == name and m["labels"] == {"transport": transport}]
        assert len(found) == 1, f"{name}: {found}\n{self.output}"
        return found[0]

    def error(self, rank):
        path = self.scratch / f"error{rank}"
        return path.read_text() if path.exists() else ""


def check(run, training, transports, tolerance):
    for transport in transports:
        assert run.value("loss_difference", transport)[0] <= tolerance
        assert run.value("parameter_difference", transport)[0] <= tolerance
        # gRPC goes on unpacking for a moment after the last step's reply, so its count is nearly all.
        assert run.value("copies_per_edge", transport)[0] == pytest.approx(COPIES[transport], rel=0.02, abs=1e-9)
        assert len(run.value("train_step_time", transport)) == training.steps - 1
        assert all(seconds > 0 for seconds in run.value("communication_time", transport))


def settings(model, **fields):
    return Training(model=model, steps=4, reference_steps=4, momentum=0.9, learning_rate=0.01, **fields)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["alexnet", "inception-v3", "vgg-16", "lstm", "gru", "fcn-5", *FROM_TRANSFORMERS])
def test_every_model_trains_with_a_parameter_server_as_in_one_process(model, tmp_path):
    if model in FROM_TRANSFORMERS:
        pytest.importorskip("transformers")
    training = settings(model, workers=2)
    check(Run(tmp_path, training, ["zero-copy"]).finish(), training, ["zero-copy"], 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["alexnet", "lstm", "fcn-5", "lstm-seq2seq"])
def test_models_train_on_a_ring_as_in_one_process(model, tmp_path):
    training = settings(model, workers=3, algorithm="ring")
    transports = ["zero-copy", "copy", "gloo"] if model == "fcn-5" else ["zero-copy"]
    check(Run(tmp_path, training, transports).finish(), training, transports, 1e-6)


@pytest.mark.slow
def test_every_transport_trains_the_same_job(tmp_path):
    pytest.importorskip("grpc")
    training = settings("fcn-5", workers=2)
    transports = ["zero-copy", "copy", "request-driven", "rpc-over-rdma", "grpc"]
    check(Run(tmp_path, training, transports).finish(), training, transports, 1e-6)


@pytest.mark.parametrize(
    ("algorithm", "transport"),
    [("parameter-server", "zero-copy"), ("parameter-server", "grpc"), ("ring", "zero-copy")],
)
def test_a_worker_that_is_killed_in_a_step_ends_the_job_by_name(algorithm, transport, tmp_path):
    if transport == "grpc":
        pytest.importorskip("grpc")
    training = settings("fcn-5", workers=3, algorithm=algorithm)
    run = Run(tmp_path, training, [transport], dies=2, timeout=40.0).finish()
    assert run.processes[2].returncode == -9
    for rank in set(range(training.ranks)) - {2}:
        assert run.processes[rank].returncode == 1, run.output[rank]
        assert run.error(rank).startswith(f"PeerLost: rank 2 was lost while training over {transport}"), run.error(rank)
