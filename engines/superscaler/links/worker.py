"""One rank in its namespace: times single collectives and messages, and steps of whole plans.

A step is the runtime's own (`runtime.distributed`), but for what is computed: that does not matter to a network, so
that a run waits for its inputs, sleeps as long as it is told, and yields zeros of the right shapes. All ranks start at
an agreed instant (namespaces share the machine's clock); a measurement is from there to the end on the last rank.

Run as ``python -m engines.superscaler.links.worker RANK RANKS FOLDER``: jobs come from ``FOLDER/jobs.pickle``, rank 0
writes ``FOLDER/seconds.json``.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from engines.superscaler.links.jobs import Step
from engines.superscaler.projection import project
from engines.superscaler.runtime.distributed import Groups, Process
from engines.superscaler.runtime.interpreter import Rank
from engines.superscaler.runtime.optimizer import Optimizer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from engines.superscaler.links.jobs import Job, Single
    from engines.superscaler.program import Buffer
    from engines.superscaler.runtime.routine import Half, Routine

LEAD = 0.03
"""Seconds between agreeing on an instant and the instant."""
LATE = 0.002
"""Seconds that a rank may be late for it; more, and the repetition does not count."""
TRIES = 4
"""Repetitions that may be made for each that counts."""


class Sleeping(Rank):
    """A rank that takes its time over a run, and computes nothing."""

    seconds: Mapping[tuple[int, str], float]
    """(run, pass) -> how long it takes."""

    def _forward(
        self,
        routine: Routine,
        key: tuple[int, int],
        reads: tuple[Buffer, ...],
        writes: tuple[Buffer, ...],
        saved: bool,  # noqa: ARG002 - nothing is saved
        leave: bool,  # noqa: ARG002
    ) -> None:
        self._pretend(reads, (key[0], "forward"), writes, routine.run.outputs)

    def _backward(
        self,
        routine: Routine,
        key: tuple[int, int],
        reads: tuple[Buffer, ...],  # noqa: ARG002
        arriving: tuple[Buffer | None, ...],
        writes: tuple[Buffer, ...],
        what: Half,
    ) -> None:
        awaited = tuple(buffer for buffer in arriving if buffer is not None)
        yielded = tuple(routine.run.gradients[place] for place in routine.halves[what])
        self._pretend(awaited, (key[0], what), writes, yielded)

    def _pretend(
        self, reads: tuple[Buffer, ...], key: tuple[int, str], writes: tuple[Buffer, ...], made: tuple[Any, ...]
    ) -> None:
        for buffer in reads:
            self.read(buffer)
        end = time.monotonic() + self.seconds[key]
        for buffer, (tensor, _, layout) in zip(writes, made, strict=True):
            self.values[buffer] = torch.zeros(layout.local_shape(self.program.graph.tensors[tensor].shape))
        time.sleep(max(0.0, end - time.monotonic()))


def step(job: Step, number: int, groups: Groups) -> Callable[[], object]:
    """A step of a plan, on a rank; those that it does not use do nothing."""
    program = job.program
    if number not in program.plan.devices:
        return lambda: None
    groups.prepare(program)
    tensors = program.graph.tensors
    zeros = {name: torch.zeros(tensors[name].shape) for name in (*program.graph.parameters, *program.graph.inputs)}
    rank = Sleeping(program, number, project(program, number), Optimizer("sgd"), dtype=torch.float32)
    rank.seconds = dict(job.seconds)
    rank.place({name: zeros[name] for name in program.graph.parameters}, {})
    process = Process(rank, groups)
    batch = [{name: zeros[name] for name in program.graph.inputs}] * program.plan.micro_batches

    def once() -> None:
        process.step(batch)
        rank.finish()

    return once


def single(job: Single, rank: int, group: dist.ProcessGroup | None) -> Callable[[], object]:
    """One collective or message, as the runtime does it."""
    if rank not in job.ranks:
        return lambda: None
    if job.kind == "send":
        source, target = job.ranks
        payload = torch.zeros(job.nbytes, dtype=torch.uint8)
        return (lambda: dist.send(payload, target)) if rank == source else (lambda: dist.recv(payload, source))
    members = len(job.ranks)
    whole = torch.zeros(job.nbytes // 4)
    other = torch.empty_like(whole)
    match job.kind:
        case "all-reduce":
            return lambda: dist.all_reduce(whole, group=group)
        case "all-gather":
            parts: list[Tensor] = [torch.zeros(whole.numel() // members) for _ in range(members)]
            return lambda: dist.all_gather(parts, whole[: whole.numel() // members], group=group)
        case _:
            return lambda: dist.all_to_all_single(other, whole, group=group)


def timed(action: Callable[[], object], repetitions: int) -> list[float]:
    """Seconds from the agreed start to the end on the last rank, of each repetition."""
    taken: list[float] = []
    for _ in range(TRIES * repetitions):
        instant = torch.tensor([time.monotonic() + LEAD], dtype=torch.float64)
        dist.broadcast(instant, 0)
        begin = float(instant)
        time.sleep(max(0.0, begin - time.monotonic()))
        late = time.monotonic() - begin
        action()
        end = torch.tensor([time.monotonic() - begin, late], dtype=torch.float64)
        dist.all_reduce(end, dist.ReduceOp.MAX)
        if float(end[1]) < LATE:
            taken.append(float(end[0]))
        if len(taken) == repetitions:
            break
    return taken


def main(rank: int, ranks: int, folder: Path) -> None:
    """Time every job, in order."""
    os.setpriority(os.PRIO_PROCESS, 0, -10)  # it mostly waits; when a message is there, it should not wait for others
    torch.set_num_threads(1)
    jobs: list[Job] = pickle.loads((folder / "jobs.pickle").read_bytes())
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=ranks)
    called = sorted({job.ranks for job in jobs if not isinstance(job, Step) and job.kind != "send"})
    alone = {members: dist.new_group(list(members)) for members in called}
    groups = Groups()
    found = []
    for job in jobs:
        action = step(job, rank, groups) if isinstance(job, Step) else single(job, rank, alone.get(job.ranks))
        action()
        found.append(timed(action, job.repetitions))
    if rank == 0:
        (folder / "seconds.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
