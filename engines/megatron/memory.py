"""Device memory of a stage, from what the engine keeps (checked in a test against what autograd really saves).

A rank keeps, for each parameter, the fp32 value, its gradient and Adam's two moments (16 bytes; 18 with a bf16 copy to
compute with), and for each micro-batch that is under way what the backward pass will need. With N tokens, width h,
sequence s, a heads and tensor degree t, a layer keeps N h (4 + 12/t) numbers and N s a/t attention probabilities;
with full recomputation its input alone, N h, and one layer at a time the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from emulation.workloads.schedule import most_kept, schedule
from engines.megatron.operators import FLOAT, Operators
from engines.megatron.plan import BYTES

if TYPE_CHECKING:
    from emulation.workloads.schedule import Name
    from engines.megatron.plan import Job


@dataclass(frozen=True)
class StageMemory:
    """Bytes that each rank of a stage needs at its peak."""

    stage: int
    parameters: int
    """With gradients and optimizer state."""
    activations: int
    """Of all micro-batches under way, and what is needed for a moment."""

    @property
    def total(self) -> int:
        """Both."""
        return self.parameters + self.activations


def stages(job: Job) -> list[StageMemory]:
    """Every stage's need."""
    return [_stage(job, number) for number in range(job.pipeline)]


def _stage(job: Job, number: int) -> StageMemory:
    first, last = number == 0, number == job.pipeline - 1
    each = 4 * FLOAT + (0 if job.dtype == "fp32" else BYTES[job.dtype])
    kept = most_kept(schedule(cast("Name", job.schedule), job.pipeline, job.micro_batches)[number])
    # The loss's own numbers live from the head's forward pass to its backward pass, which follows at once.
    at_once = kept * micro_batch(job, last=last) + moment(job, last=last)
    return StageMemory(number, each * Operators(job).parameters(first=first, last=last), at_once)


def micro_batch(job: Job, *, last: bool) -> int:
    """Bytes that one micro-batch keeps between its passes: every layer's, and the stage's output or the head's."""
    tokens, shape, size = job.micro_batch * job.shape.sequence, job.shape, BYTES[job.dtype]
    stream = tokens * shape.hidden * size
    layers = job.stage_layers * (stream if job.recompute == "full" else layer(job))
    if not last:
        return layers + stream
    return layers + 2 * stream + FLOAT * tokens * shape.vocabulary // job.tensor


def layer(job: Job) -> int:
    """Bytes that one layer keeps of one micro-batch where nothing is recomputed."""
    tokens, shape, t = job.micro_batch * job.shape.sequence, job.shape, job.tensor
    numbers = 4 * tokens * shape.hidden + (12 * tokens * shape.hidden + tokens * shape.sequence * shape.heads) // t
    # Mean and deviation of the two normalisations, in fp32.
    return numbers * BYTES[job.dtype] + 4 * FLOAT * tokens


def moment(job: Job, *, last: bool) -> int:
    """Bytes needed for a moment: the layer that is recomputed, and the largest gradients of a backward pass."""
    tokens, shape = job.micro_batch * job.shape.sequence, job.shape
    again = layer(job) if job.recompute == "full" else 0
    widest = 2 * tokens * 4 * shape.hidden // job.tensor * BYTES[job.dtype]
    logits = 2 * FLOAT * tokens * shape.vocabulary // job.tensor if last else 0
    return again + max(widest, logits)
