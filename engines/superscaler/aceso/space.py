"""The best plan of Aceso's space, by dynamic programming where Aceso walks at random.

A plan cuts the model into stages between half layers; each stage has a tensor- and a data-parallel degree of its own,
and recomputes as little as its memory needs. All stages have one micro-batch in common, of which a data-parallel rank
does its share. (Aceso may also change degrees within a stage and cut anywhere; this does not.)
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engines.superscaler.aceso.profile import ATTENTION, EMBEDDING, FEED_FORWARD, HEAD, LAYERS, NORM
from harness.api import PlanError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy as np

    from engines.superscaler.aceso.profile import Profile, Timing

NODE = 8
"""GPUs that share fast links."""
LIMIT = 28_000.0
"""Megabytes that a plan may use of a GPU's memory, from the artifact's search script."""
PER_WEIGHT = 8.0
"""Half-precision weight and gradient, and single-precision copy and two moments, in units of the weight."""
SLACK = (1.0, 1.001, 1.002, 1.005, 1.01, 1.02, 1.05)
"""How much longer than need be the slowest stage may take, in exchange for a shorter way through all of them."""


@dataclass(frozen=True)
class Stage:
    """One stage of a plan; times in microseconds of one micro-batch."""

    first: int
    """Unit it starts with: 0 the embedding, then half layers, then the head. Ends before `last`."""
    last: int
    tensor_parallel: int
    data_parallel: int
    forward: float
    backward: float
    """With what is computed again."""
    again: float
    received: float
    """Of the activation that comes in, and at the same time the gradient that goes back."""
    sent: float
    gradients: float
    """To add up gradients, once in an iteration."""
    memory: float
    """Megabytes."""

    @property
    def period(self) -> float:
        """Between one micro-batch and the next, when nobody waits."""
        return self.forward + self.backward + self.received + self.sent


@dataclass(frozen=True)
class Plan:
    """Stages and the micro-batch of all of them."""

    model: str
    micro_batch: int
    micro_batches: int
    stages: tuple[Stage, ...]

    @property
    def seconds(self) -> float:
        """One iteration: through all stages once, and the slowest for every further micro-batch."""
        periods = [stage.period for stage in self.stages]
        steady = (self.micro_batches - 1) * max(periods)
        return (sum(periods) + steady + max(stage.gradients for stage in self.stages)) / 1e6


def best(profile: Profile, devices: int, batch: int = 1024, limit: float = LIMIT) -> Plan:
    """The plan of the least time by `Plan.seconds`.

    Args:
        profile: Of the model.
        devices: GPUs, in nodes of `NODE`.
        batch: Sequences of an iteration.
        limit: Megabytes of memory that a stage may take.

    Raises:
        PlanError: no plan fits.
    """
    fastest: list[tuple[float, _Search, Plan]] = []
    for micro_batch in (1, 2, 4, 8, 16, 32, 64):
        if batch % micro_batch == 0:
            search = _Search(profile, devices, micro_batch, batch // micro_batch, limit)
            fastest += [(search.steady(plan), search, plan) for plan in search.plans()]
    if not fastest:
        raise PlanError(f"no plan of {profile.model} fits {devices} GPUs of {limit:.0f} MB")
    found = min((plan for _, _, plan in fastest), key=lambda plan: plan.seconds)
    # Best bound first, so that most of the others need not be looked at.
    for bound, search, plan in sorted(fastest, key=lambda one: one[0]):
        for slack in SLACK:
            if bound >= found.seconds:
                break
            found = min(found, search.shorter(plan, slack), key=lambda plan: plan.seconds)
    return found


def recomputed(profile: Profile, micro_batch: int, batch: int = 1024) -> Plan:
    """The artifact's plan for one GPU: all is computed again but the embedding and the head's loss.

    Its memory is that of the weights and of one layer with the inputs of all others, and is not checked.
    """
    units = _Units(profile, micro_batch, 1)
    last = units.count
    edge = [profile.operators[micro_batch, 1, name] for name in (EMBEDDING, HEAD)]
    again = float(units.forward[0, last]) - sum(op.forward for op in edge)
    stage = Stage(
        first=0,
        last=last,
        tensor_parallel=1,
        data_parallel=1,
        forward=float(units.forward[0, last]),
        backward=float(units.backward[0, last]) + again,
        again=again,
        received=0.0,
        sent=0.0,
        gradients=0.0,
        memory=float(units.weights[0, last]) * PER_WEIGHT + float(units.inputs.sum()) + units.rematerialised,
    )
    return Plan(profile.model, micro_batch, batch // micro_batch, (stage,))


class _Units:
    """What the model consists of at one share of the micro-batch and one degree, with running sums over its units."""

    def __init__(self, profile: Profile, share: int, tensor: int) -> None:
        import numpy as np

        def timing(name: str) -> Timing:
            return profile.operators[share, tensor, name]

        halves = [ATTENTION, FEED_FORWARD] * LAYERS[profile.model]
        units = [[timing(name) for name in names] for names in ((EMBEDDING,), *halves, (NORM, HEAD))]

        def running(values: Sequence[float]) -> np.ndarray:
            return np.concatenate([[0.0], np.cumsum(values)])

        def between(sums: np.ndarray) -> np.ndarray:
            return sums[None, :] - sums[:, None]

        self.count = len(units)
        self.forward = between(running([sum(op.forward for op in unit) for unit in units]))
        self.backward = between(running([sum(op.backward for op in unit) for unit in units]))
        self.weights = between(running([sum(op.weights for op in unit) for unit in units]))
        self.activations = between(running([sum(op.activations for op in unit) for unit in units]))
        self.inputs = np.array([unit[0].input for unit in units] + [0.0])
        kinds = [0, *[1, 2] * LAYERS[profile.model], 3]
        self.halves = [between(running([kind == half for kind in kinds])) for half in (1, 2)]
        present = [between(running([kind == one for kind in kinds])) > 0 for one in range(4)]
        samples = {kind: units[kinds.index(kind)] for kind in range(4)}
        largest = []
        for field in ("forward_reserved", "backward_reserved"):
            tops = [max(getattr(op, field) for op in samples[kind]) for kind in range(4)]
            largest.append(
                np.max([np.where(there, top, 0.0) for there, top in zip(present, tops, strict=True)], axis=0)
            )
        self.reserved = largest[0] + largest[1]
        self.savings = sorted(
            (time / megabytes, megabytes, half)
            for half, kind in enumerate((1, 2))
            for megabytes, time in _hull(samples[kind])
        )
        self.rematerialised = max(sum(op.activations for op in samples[kind]) for kind in (1, 2))


def _hull(operators: list[Timing]) -> Iterator[tuple[float, float]]:
    """What recomputing more and more of a half layer saves and costs: (further megabytes, further microseconds).

    A run of operators that is done again keeps what enters it and what leaves it. The best runs are those on the lower
    convex hull of cost over savings; a stage mixes neighbours, over its layers.
    """
    points = {0.0: 0.0}
    for first, last in itertools.combinations(range(len(operators)), 2):
        saved = sum(op.activations for op in operators[first:last])
        cost = sum(op.forward for op in operators[first : last + 1])
        points[saved] = min(cost, points.get(saved, cost))
    at, time = 0.0, 0.0
    while True:
        beyond = [((cost - time) / (saved - at), -saved) for saved, cost in points.items() if saved > at]
        if not beyond:
            return
        slope, saved = min(beyond)
        saved = -saved
        yield saved - at, slope * (saved - at)
        at, time = saved, points[saved]


class _Search:
    """Plans for one micro-batch."""

    def __init__(self, profile: Profile, devices: int, micro_batch: int, micro_batches: int, limit: float) -> None:
        self.profile, self.devices, self.limit = profile, devices, limit
        self.micro_batch, self.micro_batches = micro_batch, micro_batches
        self.degrees = [
            (tensor, data)
            for tensor, data in itertools.product((1, 2, 4, 8), repeat=2)
            if tensor * data <= min(devices, NODE) and micro_batch % data == 0 and micro_batch // data in (1, 2, 4, 8)
        ]
        self.units = {(t, d): _Units(profile, micro_batch // d, t) for t, d in self.degrees}
        self.count = 2 * LAYERS[profile.model] + 2
        self.known: dict[tuple[int, int, int], dict[str, np.ndarray]] = {}

    def plans(self) -> Iterator[Plan]:
        """For every number of stages that can be, the plan whose slowest stage is fastest."""
        import numpy as np

        if self.degrees:
            deepest = min(self.devices, self.count, self.micro_batches)
            for stages in self._covers(deepest, np.inf, longest=True):
                yield self._plan(stages)

    def shorter(self, plan: Plan, slack: float) -> Plan:
        """A plan of as many stages, none more than `slack` times the slowest, with the shortest way through all."""
        *_, stages = self._covers(len(plan.stages), slack * max(stage.period for stage in plan.stages), longest=False)
        return self._plan(stages)

    def steady(self, plan: Plan) -> float:
        """Seconds that no plan of as many stages can do without."""
        return max(stage.period for stage in plan.stages) * self.micro_batches / 1e6

    def _plan(self, stages: tuple[Stage, ...]) -> Plan:
        return Plan(self.profile.model, self.micro_batch, self.micro_batches, stages)

    def _covers(self, deepest: int, most: float, *, longest: bool) -> Iterator[tuple[Stage, ...]]:
        """For every number of stages that there can be, up to `deepest`, the best ones.

        That is those of the least longest period, or of the least sum of periods that are no longer than `most`.
        """
        import numpy as np

        count = self.count
        # cost[used][unit]: of the stages behind a cut, which have `used` devices and start with the unit.
        cost = {0: np.full(count + 1, np.inf)}
        cost[0][count] = 0.0
        choices: list[dict[int, tuple[np.ndarray, np.ndarray]]] = []
        for depth in range(1, deepest + 1):
            following: dict[int, np.ndarray] = {}
            chosen: dict[int, tuple[np.ndarray, np.ndarray]] = {}
            for used, behind in sorted(cost.items()):
                for number, (tensor, data) in enumerate(self.degrees):
                    size = tensor * data
                    start = self.devices - used - size
                    if start < 0 or start // NODE != (start + size - 1) // NODE:
                        continue
                    period = self._figures(tensor, data, depth, start)["period"]
                    period = np.where(period <= most * (1 + 1e-12), period, np.inf)
                    whole = np.maximum(period, behind[None, :]) if longest else period + behind[None, :]
                    cut = whole.argmin(axis=1)
                    value = whole[np.arange(count + 1), cut]
                    if used + size not in following:
                        following[used + size] = np.full(count + 1, np.inf)
                        chosen[used + size] = (np.zeros(count + 1, int), np.zeros(count + 1, int))
                    better = value < following[used + size]
                    following[used + size][better] = value[better]
                    chosen[used + size][0][better] = cut[better]
                    chosen[used + size][1][better] = number
            cost = following
            choices.append(chosen)
            if self.devices in cost and np.isfinite(cost[self.devices][0]):
                yield self._stages(choices)

    def _stages(self, choices: Sequence[Mapping[int, tuple[np.ndarray, np.ndarray]]]) -> tuple[Stage, ...]:
        """The stages that the choices lead to, from the first unit with all devices on."""
        found, used, unit = [], self.devices, 0
        for depth in range(len(choices), 0, -1):
            cuts, numbers = choices[depth - 1][used]
            tensor, data = self.degrees[numbers[unit]]
            last = int(cuts[unit])
            figures = self._figures(tensor, data, depth, self.devices - used)
            names = ("forward", "backward", "again", "received", "sent", "memory")
            weights = float(self.units[tensor, data].weights[unit, last])
            found.append(
                Stage(
                    unit,
                    last,
                    tensor,
                    data,
                    **{name: float(figures[name][unit, last]) for name in names},
                    gradients=self.profile.gradients(weights, data),
                )
            )
            used, unit = used - tensor * data, last
        return tuple(found)

    def _figures(self, tensor: int, data: int, depth: int, start: int) -> dict[str, np.ndarray]:
        """Of the stage from any unit to any other, with `depth` micro-batches in flight, on devices from `start` on."""
        import numpy as np

        across_before = start % NODE == 0 and start > 0
        across_behind = (start + tensor * data) % NODE == 0
        key = (tensor * 100 + data, depth, 2 * across_before + across_behind)
        if key in self.known:
            return self.known[key]
        units = self.units[tensor, data]
        message = self.profile.message
        before = np.array([message(size, across=across_before) for size in units.inputs])
        behind = np.array([message(size, across=across_behind) for size in units.inputs])
        before[0] = 0.0
        inputs = units.inputs[:, None]
        memory = units.weights * PER_WEIGHT + (units.activations + inputs) * depth
        memory = memory + np.maximum(units.reserved, units.weights)
        excess = memory - self.limit
        recomputing = excess > 0
        excess = np.where(recomputing, excess + units.rematerialised, 0.0)
        memory = memory + np.where(recomputing, units.rematerialised, 0.0)
        again = np.zeros_like(memory)
        for slope, megabytes, half in units.savings:
            saved = np.minimum(excess, units.halves[half] * megabytes * depth)
            saved = np.maximum(saved, 0.0)
            again += saved / depth * slope
            excess = excess - saved
            memory = memory - saved
        period = units.forward + units.backward + again + before[:, None] + behind[None, :]
        size = len(units.inputs)
        possible = (excess <= 1e-6) & (np.arange(size)[:, None] < np.arange(size)[None, :])
        self.known[key] = {
            "forward": units.forward,
            "backward": units.backward + again,
            "again": again,
            "received": np.broadcast_to(before[:, None], period.shape),
            "sent": np.broadcast_to(behind[None, :], period.shape),
            "memory": memory,
            "period": np.where(possible, period, np.inf),
        }
        return self.known[key]
