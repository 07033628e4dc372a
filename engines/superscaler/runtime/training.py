"""A real run on this rank: check two steps against one device, then time steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from engines.superscaler.projection import project
from engines.superscaler.runtime import reference
from engines.superscaler.runtime.distributed import Groups, Process, run
from engines.superscaler.runtime.interpret import initial, named, outcome
from engines.superscaler.runtime.interpreter import Rank
from engines.superscaler.runtime.optimizer import Optimizer
from engines.superscaler.runtime.outcome import compare
from harness.api import HarnessError, Measurement, retain_freed_memory

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor, nn

    from engines.superscaler.program import Program
    from engines.superscaler.runtime.interpret import Held
    from engines.superscaler.runtime.outcome import Difference, Outcome
    from harness.api import RunContext

CHECKED_STEPS = 2
TOLERANCE = 1e-5
"""Of a float32 run: sums in another order round apart."""
EPSILON = 1e-4
"""Of Adam while checking: a gradient that is zero but for rounding must not decide where a weight goes."""


def engine_run(
    program: Program,
    module: nn.Module,
    example: Sequence[Tensor],
    context: RunContext,
    *,
    optimizer: str = "adam",
) -> Iterator[Measurement]:
    """Check, then time; rank 0 yields `loss`, `difference`, `sent`, `peak_memory` and `step_time`.

    Args:
        program: Its devices are the ranks of the trial.
        module: The model, the same on every rank; computed in float32.
        example: One micro-batch for it.
        context: Of this rank.
        optimizer: `adam` or `sgd`.

    Raises:
        HarnessError: devices are not the trial's ranks, or the program computes what one device does not.
    """
    if program.plan.devices != tuple(range(context.world_size)):
        raise HarnessError(f"devices {program.plan.devices} cannot be the {context.world_size} ranks of this trial")
    # A step allocates what the last one freed; faulting it in anew would time the kernel.
    retain_freed_memory()
    torch.set_num_threads(1)
    device = _device(context.rank)
    if not dist.is_initialized():
        context.init_process_group("nccl" if device.type == "cuda" else "gloo")
    # NCCL wants everybody at a group's first communication; exchanges are between some.
    dist.barrier()
    groups = Groups()
    groups.prepare(program)
    with context.span("check"):
        checked = _check(program, module, example, Optimizer(optimizer, epsilon=EPSILON), groups, device, context)
    if checked is not None:
        found, difference = checked
        yield Measurement("loss", found.loss[0])
        yield Measurement("difference", difference.relative)
        yield Measurement("sent", max(found.sent.values()) / CHECKED_STEPS)
        if device.type == "cpu":
            yield Measurement("peak_memory", max(found.peak.values()))
    seconds = _time(program, module, example, Optimizer(optimizer), groups, device, context)
    if context.rank == 0:
        yield Measurement("step_time", seconds)
    if device.type == "cuda":
        peak = _largest([float(torch.cuda.max_memory_allocated(device))], device)
        if context.rank == 0:
            yield Measurement("peak_memory", peak)


def _check(
    program: Program,
    module: nn.Module,
    example: Sequence[Tensor],
    optimizer: Optimizer,
    groups: Groups,
    device: torch.device,
    context: RunContext,
) -> tuple[Outcome, Difference] | None:
    """On rank 0 what came of two steps, and how far it is from one device; a disagreement is raised on every rank."""
    batches = reference.make_batches(example, CHECKED_STEPS, program.plan.micro_batches, context.repeat.seed)
    seed = context.repeat.seed
    held = run(program, module, batches, groups=groups, optimizer=optimizer, device=device, seed=seed)
    gathered: list[Held | None] | None = [None] * context.world_size if context.rank == 0 else None
    dist.gather_object(held.on_cpu(), gathered)
    failure: list[str] = [""]
    checked = None
    if gathered is not None:
        try:
            found = outcome(program, dict(enumerate(gathered)))
            expected = reference.train(module, batches, optimizer, torch.float32)
            checked = found, compare(found, expected, TOLERANCE, floor=1.0)
        except HarnessError as error:
            failure = [str(error)]
    dist.broadcast_object_list(failure, 0)
    if failure[0]:
        raise HarnessError(f"plan {program.plan.name!r} does not compute what one device does: {failure[0]}")
    return checked


def _time(
    program: Program,
    module: nn.Module,
    example: Sequence[Tensor],
    optimizer: Optimizer,
    groups: Groups,
    device: torch.device,
    context: RunContext,
) -> list[float]:
    """Seconds of each timed step on its slowest rank."""
    repeat = context.repeat
    rank = Rank(
        program,
        context.rank,
        project(program, context.rank),
        optimizer,
        dtype=torch.float32,
        device=device,
        seed=repeat.seed,
    )
    rank.place(*initial(module, torch.float32))
    process = Process(rank, groups)
    steps = reference.make_batches(example, repeat.warmup + repeat.runs, program.plan.micro_batches, repeat.seed)

    def step(batch: Sequence[Mapping[str, Tensor]]) -> None:
        process.step(batch)
        rank.finish()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    times: list[float] = []
    for inputs in steps:
        batch = named(program, inputs, torch.float32)
        dist.barrier()
        times += context.sample(lambda batch=batch: step(batch), warmup=0, runs=1)
    return _largest(times, device)[repeat.warmup :]


def _device(rank: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def _largest(values: list[float], device: torch.device) -> list[float]:
    together = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(together, op=dist.ReduceOp.MAX)
    return together.tolist()
