"""Parameter server and ring with all ranks in one process: equal to a single process, with the copies that are due."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

torch = pytest.importorskip("torch")

from engines.rdma.executor import Executor, interleave  # noqa: E402 - torch is optional
from engines.rdma.providers import open_device  # noqa: E402
from engines.rdma.providers.sim.fabric import Fabric, Wire  # noqa: E402
from engines.rdma.training import reference  # noqa: E402
from engines.rdma.training.job import life  # noqa: E402
from engines.rdma.training.plan import Job, reached  # noqa: E402
from engines.rdma.training.ranks import Surroundings, capacity  # noqa: E402
from engines.rdma.training.replica import payload_of  # noqa: E402
from engines.rdma.training.settings import Training  # noqa: E402

SEED = 3


class Board(dict):
    def post(self, key, value):
        assert key not in self
        self[key] = value

    def find(self, key):
        return self.get(key)


def train(training, transport, opened, *, signal="auto"):
    """Reports of all ranks, and the parameters that rank 0 ends with."""
    job = Job(training, (transport,), signal=signal)
    payload, board = payload_of(training.model, training.size), Board()
    with ExitStack() as stack:
        executors, tasks = [], []
        for rank in range(training.ranks):
            device = opened(capacity(job, transport, payload, rank))
            stack.callback(device.close)
            around = Surroundings(rank, board, device)
            stack.callback(around.close)
            executor = Executor(device, timeout=30, alive=around.alive)
            executors.append(executor)
            tasks.append(executor.submit(life(job, transport, SEED, around)))
        interleave(executors)
        results = [task.result for task in tasks]
    return [report for report, _ in results], results[0][1]


def expected(training):
    return reference.train(
        training.model, training.size, batch=training.samples, steps=training.steps, seed=SEED,
        learning_rate=training.learning_rate, momentum=training.momentum, shares=training.workers,
    )  # fmt: skip


def shm(nbytes):
    return open_device("shm", nbytes)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def check(training, reports, parameters, *, tolerance=0.0):
    found = expected(training)
    workers = reports[len(reports) - training.workers :]
    losses = [sum(parts) / len(parts) for parts in zip(*(worker.losses for worker in workers), strict=True)]
    assert losses == pytest.approx(found.losses, abs=tolerance or 1e-12)
    for name, value in found.parameters.items():
        assert (parameters[name] - value).abs().max() <= tolerance, name


TRANSPORTS = {"zero-copy": 0, "copy": 1, "request-driven": 0}


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("model", ["fcn-5", "lstm"])
def test_a_parameter_server_computes_what_one_process_does(model, transport):
    training = Training(model=model, workers=2, steps=4, reference_steps=4, momentum=0.9)
    reports, parameters = train(training, transport, shm)
    check(training, reports, parameters)
    moved = 2 * training.workers * (training.steps - 1) * payload_of(model, "small").nbytes
    assert sum(report.copied for report in reports) == TRANSPORTS[transport] * moved


@pytest.mark.parametrize("workers", [1, 3])
def test_any_number_of_workers_may_share_the_batch(workers):
    training = Training(model="fcn-5", workers=workers, steps=3, reference_steps=3)
    reports, parameters = train(training, "zero-copy", shm)
    check(training, reports, parameters)
    assert sum(report.copied for report in reports) == 0


@pytest.mark.parametrize("signal", ["tail", "imm", "debug"])
def test_every_way_to_signal_serves(signal):
    training = Training(model="fcn-5", workers=2, steps=3, reference_steps=3)
    reports, parameters = train(training, "zero-copy", shm, signal=signal)
    check(training, reports, parameters)


@pytest.mark.parametrize(("transport", "copies"), [("zero-copy", 0), ("copy", 1)])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_a_ring_computes_what_one_process_does(workers, transport, copies):
    training = Training(model="fcn-5", algorithm="ring", workers=workers, steps=4, reference_steps=4, momentum=0.9)
    reports, parameters = train(training, transport, shm)
    # Three numbers are summed in another order in every chunk.
    check(training, reports, parameters, tolerance=1e-6 if workers > 2 else 0.0)
    moved = workers * (training.steps - 1) * payload_of("fcn-5", "small").nbytes
    assert sum(report.copied for report in reports) == copies * moved


def simulated(wire):
    fabric = Fabric(wire, seed=1)
    return lambda nbytes: open_device("sim", nbytes, fabric=fabric)


@pytest.mark.parametrize("algorithm", ["parameter-server", "ring"])
@pytest.mark.parametrize("wire", [Wire(), Wire(reorder=0.2)], ids=["plain", "adaptive routing"])
def test_training_runs_in_virtual_time(algorithm, wire):
    training = Training(model="fcn-5", algorithm=algorithm, workers=2, steps=3, reference_steps=3)
    reports, parameters = train(training, "zero-copy", simulated(wire))
    check(training, reports, parameters)
    assert sum(report.copied for report in reports) == 0
    again, _ = train(training, "zero-copy", simulated(wire))
    assert [report.steps for report in again] == [report.steps for report in reports]


def test_a_target_is_reached_by_the_mean_of_the_latest_losses():
    losses = [4.0, 1.0, 3.0, 1.0, 1.0]
    assert reached(losses, target=2.0, window=1) == 2
    assert reached(losses, target=2.0, window=2) == 3
    assert reached(losses, target=1.0, window=2) == 5
    assert reached(losses, target=0.5, window=2) is None
