"""A training job as it stands in a plan, and what follows from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engines.rdma.training.settings import Training
from harness.api import HarnessError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from harness.api import Plan

WAIT_SECONDS = 60.0
"""Longest wait for another rank before the trial fails with what was waited for."""


@dataclass(frozen=True)
class Job:
    """A plan, typed."""

    training: Training
    transports: tuple[str, ...]
    signal: str = "auto"
    provider: str = "auto"
    """Over what device; no part of the plan."""
    timeout: float = WAIT_SECONDS

    @classmethod
    def from_plan(cls, plan: Plan, *, provider: str = "auto") -> Job:
        """Read a plan's payload."""
        value = plan.payload
        return cls(Training(**value["training"]), tuple(value["transports"]), value["signal"], provider)

    @property
    def has_server(self) -> bool:
        """Whether rank 0 holds the parameters; else every rank is a worker."""
        return self.training.algorithm == "parameter-server"

    @property
    def workers(self) -> range:
        """Ranks that compute gradients."""
        return range(self.has_server, self.training.ranks)


def payload(training: Training, transports: Sequence[str], signal: str) -> Mapping[str, Any]:
    """What stands in the plan of a training job."""
    return {"training": training.model_dump(mode="json"), "transports": list(transports), "signal": signal}


def reached(losses: Sequence[float], *, target: float, window: int) -> int | None:
    """After how many steps the mean of the latest `window` losses is at most `target`; None if never."""
    total = 0.0
    for index, loss in enumerate(losses):
        total += loss - (losses[index - window] if index >= window else 0.0)
        # Summed anew would be exact; the error of a running sum is far below a loss's third digit.
        if index + 1 >= window and total / window <= target:
            return index + 1
    return None


def steps_to_loss(training: Training, losses: Sequence[float]) -> int:
    """After how many steps the target of `convergence` was reached.

    Raises:
        HarnessError: it was not.
    """
    goal = training.convergence
    assert goal is not None
    steps = reached(losses, target=goal.target_loss, window=goal.window)
    if steps is None:
        latest = sum(losses[-goal.window :]) / len(losses[-goal.window :])
        raise HarnessError(
            f"{training.model} did not come down to a loss of {goal.target_loss:g} in {len(losses)} steps: "
            f"it is {latest:.4g}; raise `steps` or the target, or change `learning_rate`"
        )
    return steps
