"""One rank of a run as a program of its own, with enough of a harness around it: `python rank.py '<JSON>'`."""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from engines.rdma import worker
from harness.api import HarnessError, Plan, Repeat
from harness.execution.rendezvous import FileRendezvous


@dataclass
class FakeContext:
    rank: int
    scratch: Path
    repeat: Repeat
    at_sample: int = -1
    """Before which sample this rank kills itself; never if negative."""
    world_size: int = 2
    address: str = "127.0.0.1"

    @property
    def rendezvous(self):
        return FileRendezvous(self.scratch / "board", rank=self.rank, world_size=2)

    def sample(self, action, *, warmup=None, runs=None):
        times = []
        for _ in range(runs):
            if self.at_sample == 0:
                os.kill(os.getpid(), 9)
            self.at_sample -= 1
            start = time.perf_counter()
            action()
            times.append(time.perf_counter() - start)
        return times

    @contextmanager
    def span(self, name, stream="main", **args):
        yield


def corrupt(transport):
    """Flip one bit of what one transport's receiver took in, as a broken transport would."""
    opened = worker.transports.open_receiver

    def open_receiver(name, session, setting, device):
        receiver = opened(name, session, setting, device)
        if name != transport:
            return receiver
        receive = receiver.receive

        def receive_wrongly(step):
            receive(step)
            content = receiver.received(1)
            if content.flags.writeable:
                content[5] ^= 1
                return
            wrong = content.copy()
            wrong[5] ^= 1
            # Tensors in messages are read-only; a transport keeps them in a dictionary.
            tensors = (receiver._inbox if hasattr(receiver, "_inbox") else receiver._end)._tensors
            tensors[1] = replace(tensors[1], content=wrong)

        receiver.receive = receive_wrongly
        return receiver

    worker.transports.open_receiver = open_receiver


def die_in_step(transport, at):
    """Kill this rank in the middle of receiving a step."""
    opened = worker.transports.open_receiver

    def open_receiver(name, session, setting, device):
        receiver = opened(name, session, setting, device)
        receive = receiver.receive

        def receive_and_die(step):
            if name == transport and step == at:
                os.kill(os.getpid(), 9)
            receive(step)

        receiver.receive = receive_and_die
        return receiver

    worker.transports.open_receiver = open_receiver


SABOTAGE = {"corrupt": corrupt, "die_in_step": die_in_step}


def main(order):
    scratch, rank = Path(order["scratch"]), order["rank"]
    for name, arguments in order["sabotage"].items():
        if name in SABOTAGE:
            SABOTAGE[name](*arguments)
    context = FakeContext(rank, scratch, Repeat(**order["repeat"]), order["sabotage"].get("at_sample", -1))
    job = replace(worker.Job.from_plan(Plan(order["plan"]), provider=order["provider"]), timeout=order["timeout"])
    try:
        with (scratch / f"result{rank}.jsonl").open("w") as out:
            for m in worker.run(job, context):
                out.write(json.dumps({"name": m.name, "values": m.values(), "labels": dict(m.labels)}) + "\n")
    except HarnessError as error:
        (scratch / f"error{rank}").write_text(f"{type(error).__name__}: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
