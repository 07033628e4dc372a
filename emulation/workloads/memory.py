"""What each rank of a pipeline stage holds at most, and whether it fits.

Activations are those of Korthikanti et al., Reducing Activation Recomputation in Large Transformer Models (MLSys 2023),
section 4: with fp16 activations and byte masks a layer keeps for a micro-batch of b sequences of s tokens

=====================  =================================================
recomputation          bytes per layer on each of t tensor-parallel ranks
=====================  =================================================
none                   s b h (10 + 24 / t + 5 a s / (h t))   (equation 2)
selective              s b h (10 + 24 / t)                   (section 5)
full                   2 s b h: the input of the layer
=====================  =================================================

and the first stage a dropout mask of s b h for each micro-batch in flight, the last one 4 s b h + 4 s b V / t for the
one micro-batch whose loss is taken (section 4.3). While a layer is recomputed its activations are held once more. How
many micro-batches are in flight is read off the schedule: p - stage under 1F1B.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from emulation.workloads.schedule import most_kept, schedule
from emulation.workloads.training import layers_of, stage_parameters

if TYPE_CHECKING:
    from collections.abc import Sequence

    from emulation.workloads.training import Plan
    from emulation.workloads.transformer import Decoder, Recompute


@dataclass(frozen=True)
class States:
    """Bytes kept per parameter."""

    weights: int = 2
    gradients: int = 2
    optimizer: int = 12
    """fp32 weights and Adam's two moments."""
    sharded: bool = False
    """Whether the optimizer's part is split over the data-parallel ranks (ZeRO, stage 1)."""


@dataclass(frozen=True)
class Held:
    """Bytes on each rank of one stage, when it holds most."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    """Of all micro-batches in flight."""
    working: int
    """Of the layer that is being recomputed."""
    output: int
    """Of the output layer and the loss."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.working + self.output


@dataclass(frozen=True)
class Verdict:
    """Whether a plan fits the devices it is meant for."""

    stages: tuple[Held, ...]
    usable: int
    """Bytes of a device that the allocator can use."""

    @property
    def fullest(self) -> int:
        """The stage that holds most."""
        return max(range(len(self.stages)), key=lambda stage: self.stages[stage].total)

    @property
    def missing(self) -> int:
        """Bytes that the fullest stage lacks on each rank; 0 if it fits."""
        return max(0, self.stages[self.fullest].total - self.usable)

    @property
    def fits(self) -> bool:
        """Whether every stage fits."""
        return not self.missing


def held(model: Decoder, plan: Plan, states: States | None = None) -> tuple[Held, ...]:
    """What each stage holds on every one of its ranks.

    Raises:
        ValueError: layers or micro-batches cannot be split as the plan says.
    """
    passes = schedule(plan.schedule, plan.pipeline, plan.micro_batches, plan.chunks)
    return tuple(
        _stage(model, plan, states or States(), stage, most_kept(passes[stage])) for stage in range(plan.pipeline)
    )


def verdict(stages: Sequence[Held], capacity: int, fragmentation: float) -> Verdict:
    """Whether they fit into devices of `capacity` bytes, of which a part is lost to fragmentation."""
    return Verdict(tuple(stages), int(capacity * (1 - fragmentation)))


def layer_activations(model: Decoder, batch: int, tensor: int, recompute: Recompute) -> int:
    """Bytes that one layer keeps of one micro-batch, on each tensor-parallel rank."""
    sbh = batch * model.sequence * model.hidden
    if recompute == "full":
        return 2 * sbh
    core = 0 if recompute == "selective" else 5 * batch * model.heads * model.sequence**2 // tensor
    return 10 * sbh + 24 * sbh // tensor + core


def _stage(model: Decoder, plan: Plan, states: States, stage: int, in_flight: int) -> Held:
    parameters = stage_parameters(model, plan, stage)
    sbh = plan.micro_batch * model.sequence * model.hidden
    layers = (
        in_flight * layers_of(model, plan) * layer_activations(model, plan.micro_batch, plan.tensor, plan.recompute)
    )
    masks = in_flight * sbh if stage == 0 else 0
    working = {
        "none": 0,
        "selective": _core(model, plan),
        "full": layer_activations(model, plan.micro_batch, plan.tensor, "none"),
    }
    last = stage == plan.pipeline - 1
    logits = 4 * plan.micro_batch * model.sequence * model.vocabulary // plan.tensor
    share = plan.data if states.sharded else 1
    return Held(
        weights=parameters * states.weights,
        gradients=parameters * states.gradients,
        optimizer=-(-parameters * states.optimizer // share),
        activations=layers + masks,
        working=working[plan.recompute],
        output=4 * sbh + logits if last else 0,
    )


def _core(model: Decoder, plan: Plan) -> int:
    """What the core of attention keeps of one micro-batch."""
    whole = layer_activations(model, plan.micro_batch, plan.tensor, "none")
    return whole - layer_activations(model, plan.micro_batch, plan.tensor, "selective")
