"""The oracle: the same step on one process, without any group, and how far a plan is from it.

Rank 0 computes loss and gradients of the whole model and the whole batch in one go and sends each gradient out; every
rank compares its part. Then both take an optimizer step, and the losses of a second batch are compared, which shows
that the updates and the replicas agree as well. A model too large for that is checked at a size of the same degrees.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from engines.megatron.parallel_state import ParallelState
from engines.megatron.plan import Place, Shape
from engines.megatron.tensor_parallel import own_part
from harness.api import HarnessError

if TYPE_CHECKING:
    from engines.megatron.plan import Job
    from engines.megatron.training import Trainer

LARGEST = 64 * 2**20
"""Parameters up to which the model itself is checked."""
TOLERANCE = {"fp32": 1e-4, "bf16": 1e-1}
"""Of a loss, over itself, and of a gradient, over the largest of its parameter: sums in another order round apart."""


@dataclass(frozen=True)
class Agreement:
    """How a plan compares with one process."""

    loss: float
    """Of the first step, by the plan."""
    gradient_error: float
    """Largest difference of a gradient, over the largest gradient of its parameter."""


def check(job: Job, state: ParallelState, seed: int) -> Agreement:
    """Compare two steps of the plan with one process; the same outcome on every rank.

    Raises:
        HarnessError: loss or gradients differ by more than the tolerance; it names the parameter that is worst.
    """
    from engines.megatron.training import Trainer

    job = checked_size(job)
    alone = replace(job, tensor=1, pipeline=1, data=1, micro_batch=job.global_batch, recompute="none")
    whole = Trainer(alone, ParallelState(Place(0, 0, 0, 0), state.device), seed) if state.place.rank == 0 else None
    plan = Trainer(job, state, seed)
    losses = []
    worst = (0.0, "")
    for number in range(2):
        expected = _broadcast(whole.gradients(*whole.batch(number)) if whole else None, state)
        losses.append(_over_replicas(plan.gradients(*plan.batch(number)), job, state))
        if not abs(losses[-1] - expected) <= TOLERANCE[job.dtype] * abs(expected):
            raise HarnessError(
                f"plan {job.label}: the loss of step {number + 1} is {losses[-1]:.7g}, one process has {expected:.7g}"
            )
        if number == 0:
            worst = _worst_gradient(whole, plan, state)
            if not worst[0] <= TOLERANCE[job.dtype]:
                raise HarnessError(
                    f"plan {job.label}: the gradient of {worst[1]!r} is off by {worst[0]:.2g} of its largest element, "
                    f"more than {TOLERANCE[job.dtype]:g}"
                )
            plan.update()
            if whole:
                whole.update()
    return Agreement(losses[0], worst[0])


def checked_size(job: Job) -> Job:
    """The job itself, or one of the same degrees and a model of a size that fits one process."""
    if job.shape.parameters <= LARGEST:
        return job
    shape = Shape(job.pipeline, 8 * job.shape.heads, job.shape.heads, 32, 64 * job.tensor)
    return replace(job, shape=shape)


def _broadcast(value: float | None, state: ParallelState) -> float:
    tensor = torch.tensor([0.0 if value is None else value], dtype=torch.float64, device=state.device)
    dist.broadcast(tensor, 0)
    return float(tensor)


def _over_replicas(loss: float | None, job: Job, state: ParallelState) -> float:
    """The mean of the replicas' losses, which the first tensor-parallel rank of each last stage knows."""
    own = loss if loss is not None and state.place.tensor == 0 else 0.0
    tensor = torch.tensor([own / job.data], dtype=torch.float64, device=state.device)
    dist.all_reduce(tensor)
    return float(tensor)


def _worst_gradient(whole: Trainer | None, plan: Trainer, state: ParallelState) -> tuple[float, str]:
    """(relative error, parameter) of the gradient that differs most, over all ranks."""
    expected = whole.flat.by_name if whole else {}
    names: list[Any] = [[(name, tuple(g.shape)) for name, g in expected.items()]]
    dist.broadcast_object_list(names, 0)
    own = {p.whole_name: p.divided_along for p in plan.stage.parameters()}
    worst = (0.0, "")
    for name, shape in names[0]:
        gradient = expected.get(name, torch.empty(shape, device=state.device))
        dist.broadcast(gradient, 0)
        if name in own:
            part = own_part(gradient, own[name], state.shard)
            off = float((plan.flat.by_name[name] - part).abs().max() / gradient.abs().max().clamp_min(1e-30))
            # A NaN compares with nothing: make it the worst there is.
            worst = max(worst, (math.inf if math.isnan(off) else off, name))
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, worst)
    return max(everyone)
