"""Training for real: check one step against a single process, then time steps.

Each rank is a process with one thread of its own. What a step does::

    gradients = 0
    for every micro-batch, in the order of the schedule:  forward, backward     (pipeline, tensor parallel)
    sum the gradients over the replicas                                         (data parallel)
    Adam
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from engines.megatron import reference
from engines.megatron.data_parallel import FlatParameters
from engines.megatron.model import Stage
from engines.megatron.parallel_state import join
from engines.megatron.pipeline import DTYPES, Pipeline
from harness.api import Measurement, retain_freed_memory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from engines.megatron.parallel_state import ParallelState
    from engines.megatron.plan import Job
    from harness.api import RunContext

LEARNING_RATE = 1e-3


class Trainer:
    """One rank's part of the model, and how it takes a step."""

    def __init__(self, job: Job, state: ParallelState, seed: int) -> None:
        self._job, self._state, self._seed = job, state, seed
        self.stage = Stage(
            job.shape,
            stage=state.place.stage,
            stages=job.pipeline,
            shard=state.shard,
            seed=seed,
            recompute=job.recompute == "full",
        ).to(state.device)
        self.flat = FlatParameters(self.stage, DTYPES[job.dtype])
        self.pipeline = Pipeline(job, state, self.stage)
        self._optimizer = torch.optim.Adam([self.flat.values], lr=LEARNING_RATE, fused=True)

    def batch(self, number: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """This replica's micro-batches of one step: (tokens, targets)."""
        tokens = batch(self._job, number, self._seed).chunk(self._job.data)[self._state.place.data]
        pieces = tokens.to(self._state.device).split(self._job.micro_batch)
        return tuple(p[:, :-1].contiguous() for p in pieces), tuple(p[:, 1:].contiguous() for p in pieces)

    def gradients(self, tokens: tuple[Tensor, ...], targets: tuple[Tensor, ...]) -> float | None:
        """Compute the gradients of the global batch into `flat`; the replica's loss on the last stage."""
        self.flat.zero_gradients()
        loss = self.pipeline.run(tokens, targets)
        self.flat.sum_over(self._state.replicas, self._job.bucket)
        return loss

    def step(self, tokens: tuple[Tensor, ...], targets: tuple[Tensor, ...]) -> None:
        """One step of training."""
        self.gradients(tokens, targets)
        self.update()
        if self._state.device.type == "cuda":
            torch.cuda.synchronize()

    def update(self) -> None:
        """Let the optimizer use the gradients that are there."""
        self._optimizer.step()
        self.flat.refresh()


def batch(job: Job, number: int, seed: int) -> Tensor:
    """Random tokens (global_batch, sequence + 1), int64, the same on every rank."""
    generator = torch.Generator().manual_seed((seed + 1) * 1_000_003 + number)
    return torch.randint(job.shape.vocabulary, (job.global_batch, job.shape.sequence + 1), generator=generator)


def run(job: Job, context: RunContext) -> Iterator[Measurement]:
    """Check, then time; rank 0 yields.

    Raises:
        HarnessError: the plan computes another loss or other gradients than one process does.
    """
    # A step allocates what the last one freed; faulting it in anew would time the kernel.
    retain_freed_memory()
    torch.set_num_threads(1)
    device = _device(context.rank)
    context.init_process_group("nccl" if device.type == "cuda" else "gloo")
    state = join(job, context.rank, device)
    labels = {"plan": job.label}
    with context.span("check"):
        found = reference.check(job, state, context.repeat.seed)
    if context.rank == 0:
        yield Measurement("loss", found.loss, labels)
        yield Measurement("gradient_error", found.gradient_error, labels)
    trainer = Trainer(job, state, context.repeat.seed)
    times, idle = _time_steps(trainer, context)
    if context.rank == 0:
        yield from _measurements(job, context, times, idle)
    if device.type == "cuda":
        peak = _over_ranks([float(torch.cuda.max_memory_allocated())], dist.ReduceOp.MAX, device)
        if context.rank == 0:
            yield Measurement("peak_memory", peak, labels)


def _device(rank: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def _time_steps(trainer: Trainer, context: RunContext) -> tuple[list[float], list[float]]:
    """Seconds of each timed step on its slowest rank, and the share of it that ranks waited for one another."""
    times: list[float] = []
    busy: list[float] = []
    repeat = context.repeat
    for number in range(repeat.warmup + repeat.runs):
        tokens, targets = trainer.batch(number)
        dist.barrier()
        begin = time.perf_counter()
        context.sample(lambda work=(tokens, targets): trainer.step(*work), warmup=0, runs=1)
        times.append(time.perf_counter() - begin)
        busy.append(times[-1] - trainer.pipeline.waited)
    device = trainer.flat.gradients.device
    slowest = _over_ranks(times, dist.ReduceOp.MAX, device)
    working = _over_ranks(busy, dist.ReduceOp.SUM, device)
    idle = [1 - work / context.world_size / step for work, step in zip(working, slowest, strict=True)]
    return slowest[repeat.warmup :], idle[repeat.warmup :]


def _over_ranks(values: list[float], op: dist.ReduceOp.RedOpType, device: torch.device) -> list[float]:
    together = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(together, op=op)
    return together.tolist()


def _measurements(job: Job, context: RunContext, times: list[float], idle: list[float]) -> Iterator[Measurement]:
    from engines.megatron.figures import rates

    yield Measurement("step_time", times, {"plan": job.label})
    for name, value in rates(job, context.profile):
        yield Measurement(name, [value / seconds for seconds in times], {"plan": job.label})
    if job.pipeline > 1:
        yield Measurement("bubble_fraction", idle, {"plan": job.label})
