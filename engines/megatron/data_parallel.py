"""Parameters and gradients of a stage in two flat buffers, summed over the replicas in buckets.

Every parameter becomes a view of one buffer and its gradient a view of another, so that autograd adds micro-batches up
in place, the replicas' sum needs no copies, and Adam is one pass over memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor


class FlatParameters:
    """A module's parameters and gradients, flat: float32, in the order of the module."""

    def __init__(self, module: nn.Module) -> None:
        parameters = list(module.parameters())
        total = sum(p.numel() for p in parameters)
        self.values = nn.Parameter(torch.empty(total, device=parameters[0].device))
        self.gradients = torch.zeros_like(self.values.data)
        self.values.grad = self.gradients
        offset = 0
        for parameter in parameters:
            end = offset + parameter.numel()
            view = self.values.data[offset:end].view_as(parameter)
            view.copy_(parameter.data)
            parameter.data = view
            parameter.grad = self.gradients[offset:end].view_as(parameter)
            offset = end

    def zero_gradients(self) -> None:
        """Forget the last step's gradients."""
        self.gradients.zero_()

    def sum_over(self, replicas: dist.ProcessGroup | None, bucket: int) -> None:
        """Add up the gradients of all replicas, `bucket` bytes at a time, each waited for."""
        if replicas is not None:
            for piece in buckets(self.gradients, bucket):
                dist.all_reduce(piece, group=replicas)


def buckets(flat: Tensor, nbytes: int) -> tuple[Tensor, ...]:
    """Consecutive pieces of at most `nbytes`."""
    return flat.split(max(1, nbytes // flat.element_size()))
