"""One step of 3-D parallel training of a decoder, as a program over a mesh of (pipeline, data, tensor) ranks.

What Megatron does (Narayanan et al., SC'21): tensor-parallel ranks are neighbours, then data-parallel ones, then the
stages. Every stage takes its micro-batches in the order of a `schedule`; a pass is three kinds of things at once: the
device's work, the host that launches it, and what is sent on. A pass ends when device *and* host are done with it,
because the host of one stage waits for messages of others and cannot run far ahead. The tensor-parallel ranks each send
their part of an activation (SC'21, section 4.1), and a stage goes on when its message has left. After its last backward
pass it sums its gradients over its data-parallel group, the first and the last stage exchange those of the tied
embedding, and the optimizer runs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from emulation.program import Mesh, Part, Program
from emulation.workloads import transformer
from emulation.workloads.schedule import schedule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from emulation.profile import Profile
    from emulation.workloads.schedule import Name, Pass
    from emulation.workloads.transformer import Decoder, Operator, Recompute

ADAM_BYTES = 28
"""Moved per parameter by Adam in mixed precision: fp32 weight and two moments read and written, fp16 gradient read,
fp16 weight written."""
STEADY = 4
"""Micro-batches, beyond one per stage, after which a 1F1B pipeline repeats itself."""
GRADIENT = 2
"""Bytes of a gradient while it is summed (fp16)."""


@dataclass(frozen=True)
class Plan:
    """How a step is spread over a cluster."""

    tensor: int
    pipeline: int
    data: int
    batch: int
    """Sequences of a step, all replicas together."""
    micro_batch: int
    """Sequences of one pass."""
    recompute: Recompute = "full"
    schedule: Name = "1f1b"
    chunks: int = 1
    """Of each stage's layers, in an interleaved schedule."""
    dtype: str = "fp16"

    def __post_init__(self) -> None:
        sizes = (self.tensor, self.pipeline, self.data, self.batch, self.micro_batch, self.chunks)
        if min(sizes) < 1:
            raise ValueError(f"a plan needs sizes of at least 1; not {self}")
        if self.batch % (self.data * self.micro_batch):
            split = f"{self.data} replicas in micro-batches of {self.micro_batch}"
            raise ValueError(f"a batch of {self.batch} cannot be split over {split}")

    @property
    def micro_batches(self) -> int:
        """Passes of each stage and direction."""
        return self.batch // self.data // self.micro_batch

    @property
    def ranks(self) -> int:
        """Devices it takes."""
        return self.tensor * self.pipeline * self.data

    @property
    def axes(self) -> dict[str, int]:
        """Of the mesh, outermost first."""
        return {"pp": self.pipeline, "dp": self.data, "tp": self.tensor}


def layers_of(model: Decoder, plan: Plan) -> int:
    """Layers of one chunk of a stage.

    Raises:
        ValueError: they cannot be split evenly.
    """
    parts = plan.pipeline * plan.chunks
    if model.layers % parts:
        raise ValueError(f"{model.layers} layers cannot be split into {parts} equal parts")
    return model.layers // parts


def stage_parameters(model: Decoder, plan: Plan, stage: int) -> int:
    """Weights that each rank of a stage holds; the last stage has a copy of the word embedding."""
    layers = layers_of(model, plan) * plan.chunks * transformer.layer_parameters(model)
    embedding = transformer.embedding_parameters(model) if stage == 0 else 0
    if stage == plan.pipeline - 1 and stage > 0:
        embedding = model.vocabulary * model.hidden
    return -(-(layers + embedding) // plan.tensor)


def training_step(model: Decoder, plan: Plan, profile: Profile) -> Program:
    """One optimizer step of `plan` on the accelerators of a cluster.

    The profile says which device is which rank, and what the framework costs on the host (`Profile.framework`).

    Raises:
        ValueError: layers, heads or the batch cannot be split as the plan says.
        WorkloadError: the cluster has fewer accelerators than the plan needs.
    """
    mesh = Mesh.over(profile, plan.axes)
    return _Step(model, plan, profile, Program(mesh, name="training step")).lower()


def step_seconds(model: Decoder, plan: Plan, profile: Profile) -> float:
    """Seconds of one step in the emulator.

    Once its pipeline is full, a 1F1B step grows by the same time with every further micro-batch. So a long one is
    simulated twice with few micro-batches, and continued. Waiting for messages may repeat itself with a longer period
    than one micro-batch; the difference is taken over `STEADY` of them.
    """
    from emulation.evaluate import simulate

    def simulated(micro_batches: int) -> float:
        short = replace(plan, batch=micro_batches * plan.data * plan.micro_batch)
        return simulate(training_step(model, short, profile), profile).seconds

    enough = plan.pipeline + STEADY
    if plan.schedule != "1f1b" or plan.micro_batches <= enough + STEADY:
        return simulated(plan.micro_batches)
    few, more = simulated(enough), simulated(enough + STEADY)
    return more + (more - few) / STEADY * (plan.micro_batches - enough - STEADY)


class _Step:
    """The lowering of one step: what has been added to the program so far."""

    def __init__(self, model: Decoder, plan: Plan, profile: Profile, program: Program) -> None:
        self.model, self.plan, self.program = model, plan, program
        self.framework = profile.framework
        self.passes = schedule(plan.schedule, plan.pipeline, plan.micro_batches, plan.chunks)
        self.blocks = [program.mesh.block(pp=stage) for stage in range(plan.pipeline)]
        self.ends: dict[tuple[int, Pass], list[int]] = {}
        """What a pass of a stage ended with."""
        self.arrived: dict[tuple[int, Pass], int] = {}
        """The transfer that a pass waits for."""
        self.last: list[list[int]] = [[] for _ in self.blocks]
        """What each stage did last."""
        self.sent: list[list[int]] = [[] for _ in self.blocks]
        """And sent last: Megatron waits until a message has left before it goes on."""
        self.whole_host = plan.tensor >= min(
            sum(device.count for device in host.devices) or 1 for host in profile.hosts
        )
        self.parts = self._parts()

    def lower(self) -> Program:
        """Add every pass as soon as what it waits for has been added, then the end of the step."""
        place = [0] * len(self.blocks)
        waiting = sum(map(len, self.passes))
        while waiting:
            before = waiting
            for stage, passes in enumerate(self.passes):
                while place[stage] < len(passes) and self._ready(stage, passes[place[stage]]):
                    self._pass(stage, passes[place[stage]])
                    place[stage] += 1
                    waiting -= 1
            assert waiting < before, "a schedule in which all stages wait for each other"
        self._end()
        return self.program

    def _ready(self, stage: int, step: Pass) -> bool:
        return self._is_first(stage, step) or (stage, step) in self.arrived

    def _is_first(self, stage: int, step: Pass) -> bool:
        """Whether a pass waits for no message: the first forward one, and the backward one of the last layers."""
        if step.direction == "forward":
            return stage == 0 and step.chunk == 0
        return stage == self.plan.pipeline - 1 and step.chunk == self.plan.chunks - 1

    def _pass(self, stage: int, step: Pass) -> None:
        block, name = (
            self.blocks[stage],
            f"{step.direction} {step.micro_batch}" + (f".{step.chunk}" if step.chunk else ""),
        )
        after = [*self.last[stage], *self.sent[stage]]
        if (stage, step) in self.arrived:
            after.append(self.arrived[stage, step])
        for parts, host in self.parts[step.direction][self._kind(stage, step.chunk)]:
            ends = [self.program.chain(block, parts, after=after, name=name)]
            if host:
                ends.append(self.program.chain(block, host, after=after, name=name, stream="host"))
            after = ends
        self.last[stage] = after
        self._send(stage, step, after)

    def _kind(self, stage: int, chunk: int) -> tuple[bool, bool]:
        """(has the embedding, has the output layer)."""
        plan = self.plan
        return (stage, chunk) == (0, 0), (stage, chunk) == (plan.pipeline - 1, plan.chunks - 1)

    def _send(self, stage: int, step: Pass, after: Sequence[int]) -> None:
        """To the neighbour that goes on with this micro-batch, if there is one."""
        stages, forward = self.plan.pipeline, step.direction == "forward"
        place = step.chunk * stages + stage + (1 if forward else -1)
        if not 0 <= place < stages * self.plan.chunks:
            return
        chunk, target = divmod(place, stages)
        following = type(step)(step.direction, step.micro_batch, chunk)
        if target == stage:
            self.arrived[target, following] = after[0]
            return
        nbytes = -(-transformer.activation_bytes(self.model, self.plan.micro_batch) // self.plan.tensor)
        name = f"activation {step.micro_batch}" if forward else f"gradient {step.micro_batch}"
        sent = self.program.transfer(self.blocks[stage], self.blocks[target], nbytes, after=after, name=name)
        self.arrived[target, following] = sent
        self.sent[stage] = [sent]

    def _end(self) -> None:
        """Gradients, the tied embedding, the optimizer."""
        model, plan, program = self.model, self.plan, self.program
        for stage, block in enumerate(self.blocks):
            if plan.data > 1:
                nbytes = stage_parameters(model, plan, stage) * GRADIENT
                summed = program.collective(
                    block,
                    "dp",
                    "all-reduce",
                    nbytes,
                    after=[*self.last[stage], *self.sent[stage]],
                    name="gradients",
                    stream="main",
                )
                self.last[stage] = [summed]
        if plan.pipeline > 1:
            self._tie()
        for stage, block in enumerate(self.blocks):
            parts = [
                Part.compute(
                    0.0,
                    stage_parameters(model, plan, stage) * ADAM_BYTES,
                    dtype=plan.dtype,
                    family="optimizer",
                    name="optimizer",
                )
            ]
            if self.framework and self.framework.step.value:
                parts.append(Part.host(self.framework.step.value, grade=self.framework.step.grade, name="step"))
            program.chain(block, parts, after=self.last[stage], name="optimizer")

    def _tie(self) -> None:
        """The first and the last stage swap their gradients of the embedding that both hold."""
        first, last = self.blocks[0], self.blocks[-1]
        nbytes = -(-self.model.vocabulary * self.model.hidden // self.plan.tensor) * GRADIENT
        after = [*self.last[0], *self.last[-1]]
        there = self.program.transfer(first, last, nbytes, after=after, name="embedding gradients")
        back = self.program.transfer(last, first, nbytes, after=after, name="embedding gradients")
        self.last[0], self.last[-1] = [there, back], [there, back]

    def _parts(self) -> dict[str, dict[tuple[bool, bool], list[Phase]]]:
        """Phases of a pass, by direction and by what the stage has beside layers."""
        model, plan = self.model, self.plan
        batch, tensor, layers = plan.micro_batch, plan.tensor, layers_of(model, plan)
        forward = transformer.layer_forward(model, batch, tensor)
        again = transformer.layer_recompute(model, batch, tensor, plan.recompute)
        backward = transformer.layer_backward(model, batch, tensor)
        found: dict[str, dict[tuple[bool, bool], list[Phase]]] = {"forward": {}, "backward": {}}
        for first in (False, True):
            for last in (False, True):
                ahead = [self._phase(transformer.embedding_forward(model, batch), 1)] if first else []
                ahead.append(self._phase(forward, layers, starts=True))
                ahead += [self._phase(transformer.head_forward(model, batch, tensor), 1)] if last else []
                back = [self._phase(transformer.head_backward(model, batch, tensor), 1)] if last else []
                back += [self._phase(again, layers)] if again else []
                back.append(self._phase(backward, layers))
                back += [self._phase(transformer.embedding_backward(model, batch), 1)] if first else []
                found["forward"][first, last], found["backward"][first, last] = ahead, back
        return found

    def _phase(self, operators: Sequence[Operator], times: int, *, starts: bool = False) -> Phase:
        """The device's parts and the host's, which go on side by side."""
        device: list[Part] = []
        for operator in operators:
            device.append(
                Part.compute(
                    operator.flops,
                    operator.nbytes,
                    dtype=self.plan.dtype,
                    family=operator.family,
                    shape=operator.shape,
                    name=operator.name,
                )
            )
            if operator.reduces:
                device.append(Part.collective("tp", "all-reduce", operator.reduces, name=f"{operator.name}, sum"))
        device *= times
        framework = self.framework
        if framework is None:
            return device, []
        wide = framework.wide_call.value if self.whole_host else 0.0
        host = [
            Part.host(
                times * host_seconds(operators, framework.call.value, wide), grade=framework.call.grade, name="launch"
            )
        ]
        if starts:
            # Neither launches nor computes meanwhile.
            alone = Part.host(framework.micro_batch.value, grade=framework.micro_batch.grade, name="micro-batch")
            device, host = [alone, *device], [alone, *host]
        return device, host


Phase = tuple[list[Part], list[Part]]
"""What a device does, and what its host does meanwhile."""


def host_seconds(operators: Sequence[Operator], call: float, wide_call: float) -> float:
    """What launching these operators takes the host: `call` for each kernel, `wide_call` more for each collective."""
    return sum(operator.calls * call + (wide_call if operator.reduces else 0.0) for operator in operators)
