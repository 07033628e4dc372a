"""A step on a cluster one does not have: the plan as a program over a mesh of ranks.

Every stage does the passes of its schedule one after another; a pass is a chain of the operators in `operators`, with
the sums over its tensor-parallel group between them. A message to a neighbour starts when the sender has it and the
receiver has come to ask for it, because that is when both gloo and NCCL begin to move bytes. The sender goes on at
once, the receiver when it has everything. When a stage has done its passes, its replicas sum their gradients, bucket
after bucket, and Adam runs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from emulation import layout
from emulation.program import Mesh, Part, Program
from emulation.units import render
from emulation.workloads import training
from emulation.workloads.schedule import schedule
from emulation.workloads.transformer import Decoder
from engines.megatron import figures, memory
from engines.megatron.operators import FLOAT, Operators
from harness.api import Measurement, PlanError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from emulation.evaluate import Result
    from emulation.profile import Profile
    from emulation.program import Block
    from emulation.workloads.schedule import Name, Pass
    from emulation.workloads.transformer import Recompute
    from engines.megatron.plan import Job
    from harness.api import EmulationContext

STREAM = "main"
"""The queue on which a rank does all but its messages to neighbours."""


@dataclass
class _Stage:
    """A stage while its items are added."""

    block: Block
    first: bool
    last: bool
    passes: Sequence[Pass]
    forward: list[Part]
    backward: list[Part]
    done: int = 0
    """Passes that have their item."""
    newest: int = -1
    """The item it did last."""
    items: dict[Pass, int] = field(default_factory=dict)


class Lowering:
    """Builds the program of one step on processes, operator by operator as eager PyTorch runs them."""

    def __init__(self, job: Job, profile: Profile) -> None:
        self.job, self.operators = job, Operators(job)
        self.mesh = Mesh.over(profile, {"pp": job.pipeline, "dp": job.data, "tp": job.tensor})
        self.program = Program(self.mesh, name=job.label)
        self._stages = [self._stage(number) for number in range(job.pipeline)]

    def _stage(self, number: int) -> _Stage:
        first, last = number == 0, number == self.job.pipeline - 1
        passes = schedule(cast("Name", self.job.schedule), self.job.pipeline, self.job.micro_batches)[number]
        forward = self.operators.forward(first=first, last=last)
        backward = self.operators.backward(first=first, last=last)
        return _Stage(self.mesh.block(pp=number), first, last, passes, forward, backward)

    def step(self) -> Program:
        """The whole step."""
        for stage in self._stages:
            clear = self.operators.clear(first=stage.first, last=stage.last)
            stage.newest = self.program.chain(stage.block, [clear], name=clear.name)
        # A pass can be added once the message it waits for has been: stages take turns until none can go on.
        while any(self._advance(number) for number in range(self.job.pipeline)):
            pass
        for stage in self._stages:
            self._finish(stage)
        return self.program

    def _advance(self, number: int) -> bool:
        stage, moved = self._stages[number], False
        while stage.done < len(stage.passes):
            step = stage.passes[stage.done]
            source = self._source(number, step)
            if source is not None and step not in source.items:
                break
            after = [stage.newest]
            if source is not None:
                sent = source.items[step]
                name = f"{'activations' if step.direction == 'forward' else 'gradients'} {step.micro_batch}"
                nbytes = self.operators.activation
                after = [self.program.transfer(source.block, stage.block, nbytes, after=[sent, *after], name=name)]
            parts = stage.forward if step.direction == "forward" else stage.backward
            stage.newest = self.program.chain(
                stage.block, parts, after=after, name=f"{step.direction} {step.micro_batch}"
            )
            stage.items[step] = stage.newest
            stage.done += 1
            moved = True
        return moved

    def _source(self, number: int, step: Pass) -> _Stage | None:
        """The stage whose message a pass waits for."""
        neighbour = number - 1 if step.direction == "forward" else number + 1
        return self._stages[neighbour] if 0 <= neighbour < self.job.pipeline else None

    def _finish(self, stage: _Stage) -> None:
        last = stage.newest
        if self.job.data > 1:
            nbytes = FLOAT * self.operators.parameters(first=stage.first, last=stage.last)
            pieces = [
                Part.collective("dp", "all-reduce", min(self.job.bucket, nbytes - start), name="gradients")
                for start in range(0, nbytes, self.job.bucket)
            ]
            last = self.program.chain(stage.block, pieces, after=[last], name="sum gradients")
        update = self.operators.update(first=stage.first, last=stage.last)
        self.program.chain(stage.block, [update], after=[last], name=update.name)


def _check_devices(job: Job, profile: Profile) -> None:
    there = len(layout.devices(profile) or layout.processors(profile))
    if there < job.ranks:
        raise PlanError(
            f"plan {job.label} needs {job.ranks:,} devices; profile {profile.name!r} has {there:,}: lower `tensor`, "
            "`pipeline` or `data`, or name a larger profile with --on emulated:PROFILE"
        )


def program(job: Job, profile: Profile) -> Program:
    """One step on the devices of a cluster.

    On accelerators it is the step of Megatron-LM with its fused kernels, as fitted to published iteration times
    (`emulation.workloads.training`); on processors what `model` runs there, operator by operator.
    """
    if figures.device_model(profile).kind == "cpu":
        return Lowering(job, profile).step()
    shape, recompute = job.shape, cast("Recompute", job.recompute)
    decoder = Decoder(shape.hidden, shape.layers, shape.heads, shape.sequence, shape.vocabulary)
    degrees = {"tensor": job.tensor, "pipeline": job.pipeline, "data": job.data}
    plan = training.Plan(
        **degrees,
        batch=job.global_batch,
        micro_batch=job.micro_batch,
        recompute=recompute,
        schedule=cast("Name", job.schedule),
        dtype=job.dtype,
    )
    return training.training_step(decoder, plan, profile)


def predict(job: Job, context: EmulationContext) -> Iterator[Measurement]:
    """The metrics of a real run, from the profile of `context`.

    Raises:
        PlanError: too few devices, or a stage does not fit its device's memory.
    """
    profile, labels = context.profile, {"plan": job.label}
    _check_devices(job, profile)
    yield Measurement("peak_memory", _checked_memory(job, profile), labels)
    result = context.simulate(program(job, profile), name=job.label)
    low, high = result.band(result.seconds)
    yield Measurement("step_time", result.seconds, labels, (low, high))
    for name, work in figures.rates(job, profile):
        yield Measurement(name, work / result.seconds, labels, (work / high, work / low))
    if job.pipeline > 1:
        yield Measurement("bubble_fraction", _bubble(job, result), labels)


def _checked_memory(job: Job, profile: Profile) -> int:
    peak = max(memory.stages(job), key=lambda need: need.total)
    model = figures.device_model(profile)
    usable = int(model.memory.value * (1 - profile.fragmentation.value))
    if model.kind == "gpu" and peak.total > usable:
        raise PlanError(
            f"plan {job.label} runs out of memory: stage {peak.stage} needs {render(peak.total, 'B')} on each device "
            f"({render(peak.parameters, 'B')} of parameters, gradients and optimizer, {render(peak.activations, 'B')} "
            f"of activations), {render(usable, 'B')} of {render(int(model.memory.value), 'B')} are usable: "
            f"{render(peak.total - usable, 'B')} too much; raise `tensor` or `pipeline`, lower `micro_batch`"
            + ("" if job.recompute == "full" else ", or set `recompute: full`")
        )
    return peak.total


def _bubble(job: Job, result: Result) -> float:
    """Share of the step in which a rank does no pass, sum or update, averaged over ranks."""
    busy = sum(seconds * result.fold.get(device, 1) for device, seconds in result.busy(STREAM).items())
    return 1 - busy / (job.ranks * result.seconds)
