"""One rank in its namespace: times single collectives and messages, and the communication of whole plans.

The instruction list is the one that the runtime carries out. What is computed does not matter to a network, so that a
run is a sleep of given length, and what is sent holds zeros of the right shape. All ranks start at an agreed instant
(namespaces share the machine's clock); a measurement is from there to the end on the last rank.

Run as ``python -m engines.superscaler.links.worker RANK RANKS FOLDER``: jobs come from ``FOLDER/jobs.pickle``, rank 0
writes ``FOLDER/seconds.json``.
"""

from __future__ import annotations

import json
import pickle
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from engines.superscaler.links.jobs import Single, Step
from engines.superscaler.program import Collective, Exchange, RunPart

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from engines.superscaler.links.jobs import Job
    from engines.superscaler.program import Instruction, Piece

DTYPES = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "int64": torch.int64,
    "int32": torch.int32,
    "bool": torch.bool,
    "uint8": torch.uint8,
}
LEAD = 0.01
"""Seconds between agreeing on an instant and the instant."""


class Groups:
    """Process groups by their ranks; all ranks make them together, before anything is timed."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._groups = {ranks: dist.new_group(list(ranks)) for ranks in sorted({g for job in jobs for g in job.groups})}

    def __getitem__(self, ranks: tuple[int, ...]) -> Any:
        return self._groups[tuple(sorted(ranks))]


def call(kind: str, part: torch.Tensor, group: Any, members: int) -> Callable[[], object]:
    """A collective of a rank whose part before is `part`."""
    match kind:
        case "all-reduce":
            return lambda: dist.all_reduce(part, group=group)
        case "all-gather":
            whole = part.new_empty(members * part.numel())
            return lambda: dist.all_gather_single(whole, part, group=group)
        case "reduce-scatter":
            own = part.new_empty(part.numel() // members)
            return lambda: dist.reduce_scatter_single(own, part, group=group)
        case _:
            other = torch.empty_like(part)
            return lambda: dist.all_to_all_single(other, part, group=group)


def single(job: Single, rank: int, groups: Groups) -> Callable[[], object]:
    """What a rank does in the measurement of one collective or message."""
    if rank not in job.ranks:
        return lambda: None
    if job.kind == "send":
        source, target = job.ranks
        payload = torch.zeros(job.nbytes, dtype=torch.uint8)
        return (lambda: dist.send(payload, target)) if rank == source else (lambda: dist.recv(payload, source))
    members = len(job.ranks)
    elements = job.nbytes // 4 // (members if job.kind == "all-gather" else 1)
    return call(job.kind, torch.zeros(elements), groups[job.ranks], members)


class Replay:
    """The instructions of a rank, prepared so that a step does nothing but wait and communicate."""

    def __init__(self, instructions: Sequence[Instruction], seconds: dict[tuple[int, str], float], groups: Groups):
        self._steps: list[Callable[[], object]] = []
        self._sent: list[dist.Work] = []
        for instruction in instructions:
            if isinstance(instruction, RunPart):
                length = seconds[instruction.run, instruction.what]
                self._steps.append(lambda length=length: time.sleep(length))
            elif isinstance(instruction, Collective):
                part = torch.zeros(instruction.shape, dtype=DTYPES[instruction.dtype]).flatten()
                group = tuple(instruction.group)
                self._steps.append(call(instruction.kind, part, groups[group], len(group)))
            elif isinstance(instruction, Exchange):
                self._steps.append(self._exchange(instruction))

    def __call__(self) -> None:
        """One step."""
        for step in self._steps:
            step()
        for work in self._sent:
            work.wait()
        self._sent.clear()

    def _exchange(self, exchange: Exchange) -> Callable[[], None]:
        dtype = DTYPES[exchange.dtype]
        out = {peer: torch.zeros(size, dtype=dtype) for peer, size in _sizes(exchange.sends).items()}
        into = {peer: torch.zeros(size, dtype=dtype) for peer, size in _sizes(exchange.receives).items()}

        def step() -> None:
            receives = [dist.irecv(tensor, peer, tag=exchange.tag) for peer, tensor in into.items()]
            self._sent.extend(dist.isend(tensor, peer, tag=exchange.tag) for peer, tensor in out.items())
            for work in receives:
                work.wait()

        return step


def _sizes(pieces: Sequence[Piece]) -> dict[int, int]:
    found: dict[int, int] = {}
    for piece in pieces:
        found[piece.peer] = found.get(piece.peer, 0) + torch.Size([end - begin for begin, end in piece.box]).numel()
    return found


def timed(action: Callable[[], object], repetitions: int) -> list[float]:
    """Seconds from the agreed start to the end on the last rank, of each repetition."""
    taken = []
    for _ in range(repetitions):
        instant = torch.tensor([time.monotonic() + LEAD], dtype=torch.float64)
        dist.broadcast(instant, 0)
        dist.barrier()
        begin = float(instant)
        while time.monotonic() < begin:
            time.sleep(max(0.0, begin - time.monotonic()))
        late = time.monotonic() - begin
        action()
        end = torch.tensor([time.monotonic() - begin, late], dtype=torch.float64)
        dist.all_reduce(end, dist.ReduceOp.MAX)
        if float(end[1]) < LEAD / 4:  # else some rank did not get there in time: not a measurement
            taken.append(float(end[0]))
    return taken


def main(rank: int, ranks: int, folder: Path) -> None:
    """Time every job, in order."""
    torch.set_num_threads(1)
    jobs: list[Job] = pickle.loads((folder / "jobs.pickle").read_bytes())
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=ranks)
    groups = Groups(jobs)
    found = []
    for job in jobs:
        if isinstance(job, Step):
            action: Callable[[], object] = Replay(job.instructions[rank], dict(job.seconds), groups)
        else:
            action = single(job, rank, groups)
        action()
        found.append(timed(action, job.repetitions))
    if rank == 0:
        (folder / "seconds.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
