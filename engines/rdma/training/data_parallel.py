"""Synchronous training in which every rank holds the parameters, and gradients are summed over all.

The sum is made in one stretch of memory per rank, in which the gradients lie one after another: the vector of a ring
(`ring`), where producers put them, or ordinary memory that another library reduces (gloo).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engines.rdma.placement import ALIGN
from engines.rdma.training.parameter_server import Times

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import torch

    from engines.rdma.executor import Operation
    from engines.rdma.training.data import Batch
    from engines.rdma.training.replica import Replica


def offsets(sizes: Iterable[int]) -> tuple[list[int], int]:
    """Where gradients of these sizes (bytes) start, each on a cache line, and the bytes that they take in all."""
    starts, end = [], 0
    for nbytes in sizes:
        starts.append(end)
        end += -(-nbytes // ALIGN) * ALIGN
    return starts, end


class PeerWorker:
    """One of several equal ranks."""

    def __init__(
        self,
        replica: Replica,
        optimizer: torch.optim.Optimizer,
        batches: Callable[[int], Batch],
        *,
        vector: torch.Tensor,
        reduce: Callable[[int], Operation[None]],
        workers: int,
        clock: Callable[[], float],
    ) -> None:
        """Train.

        Args:
            replica: the model; its gradients are produced in, or copied to, `vector`.
            optimizer: takes this rank's steps, which are everybody's.
            batches: this worker's share of the batch of a step.
            vector: all gradients, fp32, one dimension, padding between them.
            reduce: sums `vector` over the workers, in place; takes the step's number.
            workers: how many there are.
            clock: seconds.
        """
        self.replica, self._optimizer, self._batches = replica, optimizer, batches
        self._vector, self._reduce, self._workers, self._clock = vector, reduce, workers, clock
        self.times = Times()
        self.losses: list[float] = []

    def step(self, number: int) -> Operation[None]:
        """Compute, sum, move the parameters; steps count from 1."""
        batch = self._batches(number - 1)
        begin = self._clock()
        self.losses.append(self.replica.compute(batch))
        computed = self._clock()
        yield from self._reduce(number)
        reduced = self._clock()
        self._vector.div_(self._workers)
        self.replica.use_places()
        self._optimizer.step()
        self.times.steps.append(self._clock() - begin)
        self.times.communication.append(reduced - computed)
