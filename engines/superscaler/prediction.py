"""What a plan would take on a cluster one does not have."""

from __future__ import annotations

from typing import TYPE_CHECKING

from emulation import layout
from engines.superscaler import emulate, memory, proof
from engines.superscaler.dependency import preserve
from harness.api import Measurement

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engines.superscaler.job import Job
    from harness.api import EmulationContext


def predict(job: Job, context: EmulationContext) -> Iterator[Measurement]:
    """The metrics of a real run, from the profile of `context`.

    Raises:
        PlanError: too few devices, or a stage does not fit its device's memory.
        HarnessError: the plan cannot be proven.
    """
    labels = {"plan": job.label}
    program = preserve(job.graph, job.plan)
    proof.demand(job, program, context.artifacts)
    held = memory.peak(program, job.numbers)
    if layout.devices(context.profile):
        memory.check(program, context.profile, job.numbers)
    yield Measurement("peak_memory", max(one.total for one in held.values()), labels)
    sent = emulate.traffic(program)
    yield Measurement("sent", max(one.sent for one in sent.values()), labels)
    lowered = emulate.workload(program, context.profile, precision=job.numbers)
    result = context.simulate(lowered.work, name=job.label)
    low, high = result.band()
    yield Measurement("step_time", result.seconds, labels, (low, high))
    yield Measurement("samples_per_second", job.samples / result.seconds, labels, (job.samples / high, job.samples / low))
    yield Measurement("bubble_fraction", emulate.estimate(lowered, result).bubble, labels)
