"""Parameters and gradients of a stage in flat buffers, summed over the replicas in buckets.

In fp32 every parameter becomes a view of one buffer and its gradient a view of another, so that autograd adds
micro-batches up in place, the replicas' sum needs no copies, and Adam is one pass over memory. In bf16 the model
computes with a copy in half precision, and what autograd finds is added to the fp32 gradients (Megatron-LM's mixed
precision: 18 bytes a parameter).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor


class FlatParameters:
    """A module's parameters and gradients, flat, in the order of the module; float32 whatever it computes in."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        parameters = list(module.parameters())
        total = sum(p.numel() for p in parameters)
        device = parameters[0].device
        self.values = nn.Parameter(torch.empty(total, device=device))
        self.gradients = torch.zeros(total, device=device)
        self.values.grad = self.gradients
        self._copy = self.values.data if dtype == torch.float32 else torch.empty(total, device=device, dtype=dtype)
        self.by_name: dict[str, Tensor] = {}
        """Name of a whole parameter -> gradient of this process's part of it."""
        offset = 0
        for parameter in parameters:
            end = offset + parameter.numel()
            self.values.data[offset:end] = parameter.data.flatten()
            parameter.data = self._copy[offset:end].view_as(parameter)
            self._attach(parameter, self.gradients[offset:end].view_as(parameter))
            offset = end
        self.refresh()

    def _attach(self, parameter: nn.Parameter, gradient: Tensor) -> None:
        self.by_name[parameter.whole_name] = gradient
        if parameter.dtype == torch.float32:
            parameter.grad = gradient
            return

        def add(parameter: Tensor) -> None:
            gradient.add_(parameter.grad)
            parameter.grad = None

        parameter.register_post_accumulate_grad_hook(add)

    def zero_gradients(self) -> None:
        """Forget the last step's gradients."""
        self.gradients.zero_()

    def refresh(self) -> None:
        """Let the model compute with the values that the optimizer left."""
        if self._copy.dtype != torch.float32:
            self._copy.copy_(self.values.data)

    def sum_over(self, replicas: dist.ProcessGroup | None, bucket: int) -> None:
        """Add up the gradients of all replicas, `bucket` bytes at a time, each waited for."""
        if replicas is not None:
            for piece in buckets(self.gradients, bucket):
                dist.all_reduce(piece, group=replicas)


def buckets(flat: Tensor, nbytes: int) -> tuple[Tensor, ...]:
    """Consecutive pieces of at most `nbytes`."""
    return flat.split(max(1, nbytes // flat.element_size()))
