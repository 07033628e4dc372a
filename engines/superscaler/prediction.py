"""What a plan would take on a cluster one does not have."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engines.superscaler import emulate, memory, picture, proof
from engines.superscaler.dependency import preserve
from harness.api import Measurement

if TYPE_CHECKING:
    from collections.abc import Iterator

    from emulation.evaluate import Result
    from engines.superscaler.job import Job
    from engines.superscaler.search import Found
    from harness.api import EmulationContext


def predict(job: Job, context: EmulationContext) -> Iterator[Measurement]:
    """The metrics of a real run, from the profile of `context`.

    Raises:
        PlanError: too few devices, or a stage does not fit its device's memory.
        HarnessError: the plan cannot be proven.
    """
    program = preserve(job.graph, job.plan)
    proof.demand(job, program, context.artifacts)
    held = memory.check(program, context.profile, job.numbers)
    yield Measurement("peak_memory", max(one.peak.total for one in held))
    traffic = emulate.traffic(program)
    yield Measurement("sent", max(sum(one.sent.values()) for one in traffic.values()))
    lowered = emulate.workload(program, context.profile, precision=job.numbers)
    result = context.simulate(lowered.work, name=job.label)
    low, high = result.band()
    samples = job.samples
    yield Measurement("step_time", result.seconds, band=(low, high))
    yield Measurement("samples_per_second", samples / result.seconds, band=(samples / high, samples / low))
    bubble = emulate.estimate(lowered, result).bubble
    yield Measurement("bubble_fraction", bubble)
    picture.write(context.artifacts, program, lowered, result, held, context.profile)
    if job.found is not None:
        (context.artifacts / "why.txt").write_text(_why(job.found, result, bubble) + "\n", "utf-8")


def _why(found: Found, result: Result, bubble: float) -> str:
    told = picture.why_found(found, shares=result.critical_path.shares, bubble=bubble)
    return (
        f"{told}\nSearched for {found.searched:.1f} s; splits are within {found.split_gap:.2%} of their optimum; "
        f"costs from {found.source}."
    )
