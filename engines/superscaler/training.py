"""A plan run for real: proven on rank 0, then held to one device and timed by the runtime.

Each rank is a process; its instruction list is the one that was proven and predicted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from engines.superscaler import proof
from engines.superscaler.dependency import preserve
from engines.superscaler.job import build
from engines.superscaler.runtime.training import engine_run
from harness.api import HarnessError, Measurement

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engines.superscaler.job import Job
    from engines.superscaler.program import Program
    from harness.api import RunContext


def run(job: Job, context: RunContext) -> Iterator[Measurement]:
    """Prove, compare, then time; rank 0 yields.

    Raises:
        HarnessError: the plan cannot be proven, or computes something else than one device does.
    """
    context.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    program = preserve(job.graph, job.plan)
    with context.span("prove"):
        _prove(job, program, context)
    module, example = build(job.model, job.size, job.shape, seed=context.repeat.seed)
    for found in engine_run(program, module, example, context, optimizer=job.optimizer):
        yield found
        if found.name == "step_time":
            yield Measurement("samples_per_second", [job.samples / seconds for seconds in found.values()])


def _prove(job: Job, program: Program, context: RunContext) -> None:
    """Raise on every rank what rank 0 has found, so that none waits for the others."""
    told = [""]
    if context.rank == 0:
        try:
            proof.demand(job, program, context.artifacts)
        except HarnessError as error:
            told = [str(error)]
    dist.broadcast_object_list(told, 0)
    if told[0]:
        raise HarnessError(told[0])
