"""Before anything runs: the plan's program does what one device would.

Levels 0 to 2 look at the program itself. Level 3 computes it, and its numbers need memory for a whole model in float64:
a model too large for that is proven on one with as many operators and smaller dims. That suffices, because an operator
is split into equal parts whatever its size.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from harness.api import HarnessError

if TYPE_CHECKING:
    from pathlib import Path

    from engines.superscaler.job import Job
    from engines.superscaler.program import Program
    from engines.superscaler.runtime.outcome import Difference

LARGEST = 2**21
"""Parameters up to which the model itself is computed."""


class Unproven(HarnessError):
    """A plan that does not compute what one device does, or cannot be shown to."""


def demand(job: Job, program: Program, artifacts: Path | None = None) -> None:
    """Prove a program as far as the job asks; a report of it goes to `verification.txt`.

    Raises:
        Unproven: it is wrong; the message has what was found, by rank and instruction.
    """
    if job.verify == "none":
        return
    from engines.superscaler.verify import verify
    from engines.superscaler.verify.equality import STEPS

    report = verify(program, level=2)
    text = report.render()
    if report.ok and job.verify == "interpret":
        found, what = interpreted(job, program)
        text += f"\nL3 {what} in float64 for {STEPS} steps: largest difference {found.relative:.2g}, of {found.where}"
    if artifacts is not None:
        (artifacts / "verification.txt").write_text(text + "\n", "utf-8")
    if not report.ok:
        raise Unproven(f"plan {job.label} cannot be proven, so it is not run (`verify: none` would):\n{text}")


def interpreted(job: Job, program: Program) -> tuple[Difference, str]:
    """Two steps in float64, all ranks in this process, against the model on one device.

    Returns:
        Where they are farthest apart, and what was computed.

    Raises:
        Unproven: by more than the tolerance.
    """
    import torch

    from engines.superscaler.dependency import preserve
    from engines.superscaler.job import build
    from engines.superscaler.runtime.optimizer import Optimizer
    from engines.superscaler.verify import equality

    shape, size, what = dict(job.shape), job.size, "the model itself"
    parameters = sum(math.prod(program.graph.tensors[name].shape) for name in program.graph.parameters)
    if parameters > LARGEST:
        from engines.superscaler import models
        from engines.superscaler.job import traced

        try:
            shape, size = models.shrunk(job.model, job.size, job.shape), ""
        except models.ModelError as error:
            raise Unproven(f"{error}; `verify: static` proves the plan without numbers") from error
        graph = traced(job.model, size, tuple(sorted(shape.items())))
        program = preserve(graph, replace(job.plan, graph=graph.digest))
        what = "the model with smaller dims (" + ", ".join(f"{k} {v}" for k, v in shape.items()) + ")"
    module, batch = build(job.model, size, shape)
    # Tensors are small: threads would wait for one another more than they compute.
    torch.set_num_threads(1)
    try:
        return equality.difference(program, module, batch, optimizer=Optimizer(job.optimizer)), what
    except HarnessError as error:
        raise Unproven(f"plan {job.label} does not compute what one device does: {error}") from error
