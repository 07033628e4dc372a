"""Training in a single process: slow, obvious, and what every other way must agree with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from engines.rdma.training import models

if TYPE_CHECKING:
    from torch import Tensor

    from engines.rdma.training.settings import Size


@dataclass
class Trajectory:
    """What training led through."""

    losses: list[float] = field(default_factory=list)
    """Mean loss of each step's batch, before the step."""
    parameters: dict[str, Tensor] = field(default_factory=dict)
    """After the last step."""


def train(
    model: str,
    size: Size,
    *,
    batch: int,
    steps: int,
    learning_rate: float,
    momentum: float = 0.0,
    seed: int = 0,
    shares: int = 1,
) -> Trajectory:
    """Stochastic gradient descent with momentum, as in the textbook.

    Args:
        model: a name of `models.MODELS`.
        size: of the model.
        batch: samples of a step.
        steps: how many.
        learning_rate: step size.
        momentum: what part of the last step's direction is kept.
        seed: of the initial parameters and the data.
        shares: pieces in which the batch is computed, whose losses are averaged. For most models it changes rounding
            only; batch normalisation takes its statistics over a share, as each worker does.
    """
    module = models.build(model, size, seed)
    task = models.variant(model, size).task
    parameters = dict(module.named_parameters())
    velocity = {name: torch.zeros_like(value) for name, value in parameters.items()}
    found = Trajectory()
    for step in range(steps):
        module.zero_grad()
        whole = task.batch(step, batch, seed)
        total = 0.0
        for index in range(shares):
            share = whole.share(index, shares)
            loss = models.loss(module(*share.inputs), share.targets)
            loss.backward()
            total += loss.item()
        found.losses.append(total / shares)
        with torch.no_grad():
            for name, value in parameters.items():
                assert value.grad is not None
                velocity[name] = momentum * velocity[name] + value.grad / shares
                # One rounding, as optimizers do it: deep networks with batch normalisation blow up a last bit.
                value.add_(velocity[name], alpha=-learning_rate)
    found.parameters = {name: value.detach().clone() for name, value in parameters.items()}
    return found
