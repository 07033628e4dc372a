"""Synchronous training with a parameter server.

After Li et al. 2014, "Scaling distributed machine learning with the parameter server", with one server. It holds the
parameters, in registered memory from which they go to the workers; they arrive in slots of the workers' registered
memory, *and are the workers' parameters there*. Each worker's gradients go the other way: produced in its registered
memory, they arrive in a slot for each worker at the server, which averages them in the order of ranks and takes the
step.

Nothing is overwritten too early: a worker computes on its parameters until its gradients are complete, and the server
sends the next parameters only when it has the gradients of all.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from engines.rdma.training.edges import together

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from engines.rdma.executor import Operation
    from engines.rdma.training.data import Batch
    from engines.rdma.training.edges import Incoming, Outgoing
    from engines.rdma.training.replica import Replica


@dataclass
class Times:
    """What one rank measured of each step, in seconds."""

    steps: list[float] = field(default_factory=list)
    communication: list[float] = field(default_factory=list)


class Server:
    """The rank that holds the parameters."""

    def __init__(
        self,
        replica: Replica,
        optimizer: torch.optim.Optimizer,
        *,
        parameters: Sequence[Outgoing],
        gradients: Sequence[Incoming],
        clock: Callable[[], float],
    ) -> None:
        """Serve the workers at the other ends of these edges.

        Args:
            replica: the model; its parameters lie where the outgoing edges send from.
            optimizer: takes the steps.
            parameters: an edge to each worker.
            gradients: an edge from each worker, in the same order.
            clock: seconds.
        """
        self.replica, self._optimizer, self._clock = replica, optimizer, clock
        self._out, self._in = parameters, gradients
        self.times = Times()
        self._means = []
        for parameter in replica.parameters:
            parameter.grad = torch.zeros_like(parameter)
            self._means.append(parameter.grad.numpy())

    def step(self, number: int) -> Operation[None]:
        """Give parameters out, take gradients in, move the parameters; steps count from 1."""
        begin = self._clock()
        moves = [edge.send(number) for edge in self._out]
        moves += [edge.receive(number) for edge in self._in]
        yield from together(*moves)
        self._average()
        self._optimizer.step()
        self.times.steps.append(self._clock() - begin)

    def _average(self) -> None:
        """Sum in the order of ranks, so that the result does not depend on who came first."""
        for index, mean in enumerate(self._means):
            parts = [edge.tensor(index).view(np.float32).reshape(mean.shape) for edge in self._in]
            if len(parts) == 1:
                self._use(index, parts[0])
                continue
            np.add(parts[0], parts[1], out=mean)
            for part in parts[2:]:
                np.add(mean, part, out=mean)
            np.divide(mean, len(parts), out=mean)

    def _use(self, index: int, only: NDArray[np.float32]) -> None:
        """Let the optimizer see the only worker's gradient where it lies, or a copy if it may not be written there."""
        if only.flags.writeable:
            self.replica.parameters[index].grad = torch.from_numpy(only)
            return
        self._means[index][...] = only
        self.replica.ledger.count("message to gradient", only.nbytes)


class Worker:
    """A rank that computes gradients of its share of every batch."""

    def __init__(
        self,
        replica: Replica,
        batches: Callable[[int], Batch],
        *,
        parameters: Incoming,
        gradients: Outgoing,
        clock: Callable[[], float],
    ) -> None:
        """Work for the server at the other ends of these edges.

        Args:
            replica: the model.
            batches: this worker's share of the batch of a step.
            parameters: the edge from the server.
            gradients: the edge to it.
            clock: seconds.
        """
        self.replica, self._batches, self._clock = replica, batches, clock
        self._in, self._out = parameters, gradients
        self.times = Times()
        self.losses: list[float] = []

    def step(self, number: int) -> Operation[None]:
        """Pull parameters, compute, push gradients."""
        batch = self._batches(number - 1)
        begin = self._clock()
        yield from self._in.receive(number)
        for index in range(len(self.replica.parameters)):
            self.replica.take(index, self._in.tensor(index))
        here = self._clock()
        self.losses.append(self.replica.compute(batch))
        computed = self._clock()
        yield from self._out.send(number)
        end = self._clock()
        self.times.steps.append(end - begin)
        self.times.communication.append(end - begin - (computed - here))
