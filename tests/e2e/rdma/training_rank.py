"""One rank of a training job as a program of its own: `python training_rank.py '<JSON>'`."""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from engines.rdma.training import job as training_job
from engines.rdma.training.plan import Job
from engines.rdma.training.replica import Replica
from harness.api import HarnessError, Plan, Repeat
from harness.execution.rendezvous import FileRendezvous


@dataclass
class Context:
    rank: int
    world_size: int
    scratch: Path
    repeat: Repeat
    address: str = "127.0.0.1"

    @property
    def rendezvous(self):
        return FileRendezvous(self.scratch / "board", rank=self.rank, world_size=self.world_size)

    @contextmanager
    def span(self, name, stream="main", **args):
        yield

    def init_process_group(self, backend="gloo"):
        import torch.distributed as dist

        store = dist.FileStore(str(self.scratch / "store"), self.world_size)
        dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.world_size)


def die_in_step(at):
    """Kill this rank when it has computed the gradients of a step and sent none."""
    compute = Replica.compute
    steps = []

    def compute_and_die(replica, batch):
        loss = compute(replica, batch)
        steps.append(loss)
        if len(steps) == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return loss

    Replica.compute = compute_and_die


def main(order):
    scratch, rank = Path(order["scratch"]), order["rank"]
    if order["dies_at"]:
        die_in_step(order["dies_at"])
    job = replace(Job.from_plan(Plan(order["plan"])), timeout=order["timeout"])
    context = Context(rank, order["ranks"], scratch, Repeat(warmup=1, runs=1, seed=3))
    try:
        found = [
            {"name": m.name, "values": m.values(), "labels": dict(m.labels)} for m in training_job.run(job, context)
        ]
    except HarnessError as error:
        (scratch / f"error{rank}").write_text(f"{type(error).__name__}: {error}")
        return 1
    (scratch / f"found{rank}.json").write_text(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
