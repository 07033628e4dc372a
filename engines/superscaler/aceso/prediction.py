"""Predicted iteration times beside Aceso's measured ones."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import mean
from typing import TYPE_CHECKING

from engines.superscaler.aceso.profile import read
from engines.superscaler.aceso.space import best, recomputed

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from engines.superscaler.aceso.space import Plan

POINTS: Mapping[str, tuple[str, int]] = {
    "350M": ("350M", 1),
    "1.3B": ("1_3B", 4),
    "2.6B": ("2_6B", 8),
    "6.7B": ("6_7B", 16),
    "13B": ("13B", 32),
}
"""Columns of the published table: model of the profile and GPUs."""


@dataclass(frozen=True)
class Point:
    """One point of the comparison."""

    plan: Plan
    formula: float
    """Seconds by `Plan.seconds`."""
    events: float
    """Seconds by `simulate`."""
    actual: float
    """Seconds, published."""

    @property
    def error(self) -> float:
        """Of the simulation, relative to what was measured."""
        return self.events / self.actual - 1


@dataclass(frozen=True)
class Comparison:
    """All points."""

    points: Mapping[str, Point]

    @property
    def mape(self) -> float:
        """Mean absolute error, relative."""
        return mean(abs(point.error) for point in self.points.values())


def compare(folder: Path, actual: Mapping[str, float], *, searched_alone: bool = False) -> Comparison:
    """Predict every published point from the profiles alone.

    The artifact gives the plan that was measured for one GPU (micro-batch 8, all recomputed) and is taken at its word;
    those on several are not published, and the optimum of the space stands in for them.

    Args:
        folder: Of the profiles, see `profile.read`.
        actual: Column of the published table -> measured seconds.
        searched_alone: Search for the plan on one GPU too.
    """
    points = {}
    for column, (model, devices) in POINTS.items():
        profile = read(folder, model)
        plan = best(profile, devices) if devices > 1 or searched_alone else recomputed(profile, micro_batch=8)
        points[column] = Point(plan, plan.seconds, simulate(plan), actual[column])
    return Comparison(points)


def simulate(plan: Plan) -> float:
    """Seconds of one iteration of 1F1B, event by event.

    A stage does its blocks in order; before one that needs a message it waits for it, and a message takes its time of
    the sender and the receiver alike, as blocking sends do. Where an activation goes one way and a gradient the other
    at the same moment they share that time, and so each direction counts half of `received` and `sent`.
    """
    stages, total = plan.stages, plan.micro_batches
    depth = len(stages)
    orders = []
    for number in range(depth):
        ahead = min(depth - 1 - number, total)
        order = [("F", micro) for micro in range(ahead)]
        for micro in range(total - ahead):
            order += [("F", ahead + micro), ("B", micro)]
        orders.append(order + [("B", micro) for micro in range(total - ahead, total)])
    ended: dict[tuple[str, int, int], float] = {}
    clock = [0.0] * depth
    place = [0] * depth
    while any(at < len(order) for at, order in zip(place, orders, strict=True)):
        moved = False
        for number, stage in enumerate(stages):
            while place[number] < len(orders[number]):
                what, micro = orders[number][place[number]]
                before = number - 1 if what == "F" else number + 1
                ready = 0.0
                if 0 <= before < depth:
                    if (what, before, micro) not in ended:
                        break
                    ready = ended[what, before, micro]
                compute = stage.forward if what == "F" else stage.backward
                clock[number] = max(clock[number], ready) + compute + (stage.received + stage.sent) / 2
                ended[what, number, micro] = clock[number]
                place[number] += 1
                moved = True
        if not moved:
            raise ValueError("stages wait for one another")
    return max(end + stage.gradients for end, stage in zip(clock, stages, strict=True)) / 1e6
