"""A plan run for real: proven on rank 0, held to one device in fp32, then timed.

Each rank is a process; its instruction list is the one that was proven and predicted.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from engines.superscaler import proof
from engines.superscaler.dependency import preserve
from engines.superscaler.job import build
from engines.superscaler.projection import project
from engines.superscaler.runtime import distributed, outcome, reference
from engines.superscaler.runtime.interpret import initial, named
from engines.superscaler.runtime.interpret import outcome as together
from engines.superscaler.runtime.interpreter import Rank
from engines.superscaler.runtime.optimizer import Optimizer
from harness.api import HarnessError, Measurement, retain_freed_memory

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from engines.superscaler.job import Job
    from engines.superscaler.program import Program
    from harness.api import RunContext

TOLERANCE = 1e-4
"""Of a loss, gradient or parameter in fp32, over the largest element of its tensor: another order rounds apart."""
STEPS = 2
EPSILON = 1e-4
"""Of Adam while plans are compared. Some gradients are zero but for rounding (that of a key's bias, to which a softmax
is blind); against the usual 1e-8 that rounding would be large, and move parameters by whole steps."""


def run(job: Job, context: RunContext) -> Iterator[Measurement]:
    """Prove, compare, then time; rank 0 yields.

    Raises:
        HarnessError: the plan cannot be proven, or computes something else than one device does.
    """
    # A step allocates what the last one freed; faulting it in anew would time the kernel.
    retain_freed_memory()
    torch.set_num_threads(1)
    device = _device(context.rank)
    context.init_process_group("nccl" if device.type == "cuda" else "gloo")
    program = preserve(job.graph, job.plan)
    if context.rank == 0:
        with context.span("prove"):
            failure = _failure(lambda: proof.demand(job, program, context.artifacts))
    _agree(failure if context.rank == 0 else None)
    with context.span("compare"):
        compared = _compare(job, program, context, device)
    if context.rank == 0:
        yield from (Measurement(name, value) for name, value in compared.items())
    times = _timed(job, program, context, device)
    if context.rank == 0:
        yield Measurement("step_time", times)
        yield Measurement("samples_per_second", [job.samples / seconds for seconds in times])


def _device(rank: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def _failure(action: Any) -> str:
    """What an action says is wrong, or an empty string."""
    try:
        action()
    except HarnessError as error:
        return str(error)
    return ""


def _agree(failure: str | None) -> None:
    """Raise on every rank what rank 0 has found, so that none waits for the others."""
    told: list[str | None] = [failure]
    dist.broadcast_object_list(told, 0)
    if told[0]:
        raise HarnessError(told[0])


def _batches(
    job: Job, context: RunContext, steps: int
) -> tuple[torch.nn.Module, Sequence[Sequence[tuple[torch.Tensor, ...]]]]:
    """The model and its batches; equal on all ranks."""
    module, example = build(job.model, job.size, job.shape, seed=context.repeat.seed)
    return module, reference.make_batches(example, steps, job.plan.micro_batches, context.repeat.seed)


def _compare(job: Job, program: Program, context: RunContext, device: torch.device) -> dict[str, float]:
    """Some steps of the plan and of one device; what the plan was off by, held and sent."""
    module, batches = _batches(job, context, STEPS)
    optimizer = Optimizer(job.optimizer, epsilon=EPSILON)
    held = distributed.run(program, module, batches, optimizer=optimizer, device=device, seed=context.repeat.seed)
    gathered: list[Any] = [None] * context.world_size
    dist.gather_object(held, gathered if context.rank == 0 else None)
    compared: dict[str, float] = {}

    def compare() -> None:
        found = together(program, dict(enumerate(gathered)))
        expected = reference.train(module, batches, optimizer=optimizer, dtype=torch.float32)
        compared["difference"] = outcome.compare(found, expected, TOLERANCE).relative
        compared["loss"] = found.loss[0]
        compared["sent"] = max(found.sent.values()) / STEPS
        compared["peak_memory"] = max(found.peak.values())

    _agree(_failure(compare) if context.rank == 0 else None)
    return compared


def _timed(job: Job, program: Program, context: RunContext, device: torch.device) -> list[float]:
    """Seconds of each step on its slowest rank."""
    module, batches = _batches(job, context, 1)
    groups = distributed.Groups()
    groups.prepare(program)
    rank = Rank(
        program,
        context.rank,
        project(program, context.rank),
        Optimizer(job.optimizer),
        dtype=torch.float32,
        device=device,
        seed=context.repeat.seed,
    )
    rank.place(*initial(module, torch.float32))
    process = distributed.Process(rank, groups)
    inputs = named(program, batches[0], torch.float32)
    times: list[float] = []

    def step() -> None:
        process.step(inputs)
        rank.finish()
        if device.type == "cuda":
            torch.cuda.synchronize()

    for _ in range(context.repeat.warmup + context.repeat.runs):
        dist.barrier()
        begin = time.perf_counter()
        context.sample(step, warmup=0, runs=1)
        times.append(time.perf_counter() - begin)
    slowest = torch.tensor(times, dtype=torch.float64, device=device)
    dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
    return slowest.tolist()[context.repeat.warmup :]
