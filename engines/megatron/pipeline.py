"""The executor of a pipeline schedule: receive, compute, send, micro-batch after micro-batch.

Sends do not block (the neighbour may be busy with another pass); they are waited for at the end of the step. Every
replica's micro-batches, and the micro-batches of each, count alike in the loss, so gradients add up to those of the
mean over the global batch.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist

from emulation.workloads.schedule import schedule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from emulation.workloads.schedule import Name
    from engines.megatron.model import Stage
    from engines.megatron.parallel_state import Channel, ParallelState
    from engines.megatron.plan import Job

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Pipeline:
    """Carries one step's micro-batches through this rank's stage."""

    def __init__(self, job: Job, state: ParallelState, stage: Stage) -> None:
        self._job, self._state, self._stage = job, state, stage
        self._passes = schedule(cast("Name", job.schedule), job.pipeline, job.micro_batches)[state.place.stage]
        self._dtype = DTYPES[job.dtype]
        self._shape = (job.micro_batch, job.shape.sequence, job.shape.hidden)
        self._under_way: list[tuple[Any, Tensor]] = []
        self.waited = 0.0
        """Seconds of the last step spent waiting for a neighbour's tensor."""

    def run(self, tokens: Sequence[Tensor], targets: Sequence[Tensor]) -> float | None:
        """Forward and backward of every micro-batch, gradients added up.

        Args:
            tokens: one (micro_batch, sequence) int64 tensor for each micro-batch.
            targets: the same, each token's successor.

        Returns:
            The loss over this replica's part of the batch on the last stage; None elsewhere.
        """
        self.waited = 0.0
        inputs: dict[int, Tensor] = {}
        outputs: dict[int, Tensor] = {}
        losses: list[Tensor] = []
        for step in self._passes:
            n = step.micro_batch
            if step.direction == "forward":
                inputs[n] = tokens[n] if self._state.from_previous is None else self._receive(self._state.from_previous)
                outputs[n] = self._forward(inputs[n], targets[n])
                if self._state.to_next is None:
                    losses.append(outputs[n].detach())
                else:
                    self._send(outputs[n].detach(), self._state.to_next)
            else:
                self._backward(inputs.pop(n), outputs.pop(n))
        for work, _ in self._under_way:
            work.wait()
        self._under_way.clear()
        return float(torch.stack(losses).sum()) / self._job.micro_batches if losses else None

    def _forward(self, x: Tensor, targets: Tensor) -> Tensor:
        if x.is_floating_point():
            x.requires_grad_()
        return self._stage(x, targets)

    def _backward(self, x: Tensor, output: Tensor) -> None:
        if self._state.from_next is None:
            (output / (self._job.micro_batches * self._job.data)).backward()
        else:
            output.backward(self._receive(self._state.from_next))
        if self._state.to_previous is not None:
            assert x.grad is not None
            self._send(x.grad, self._state.to_previous)

    def _receive(self, channel: Channel) -> Tensor:
        begin = time.perf_counter()
        tensor = torch.empty(self._shape, dtype=self._dtype, device=self._state.device)
        dist.recv(tensor, channel.peer, group=channel.group)
        self.waited += time.perf_counter() - begin
        return tensor

    def _send(self, tensor: Tensor, channel: Channel) -> None:
        tensor = tensor.contiguous()
        self._under_way.append((dist.isend(tensor, channel.peer, group=channel.group), tensor))
