"""The best plans timed again by the emulator: lowered as they would be run, with everything that shares links."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engines.superscaler.cost import Message
from engines.superscaler.graph import BYTES
from engines.superscaler.redistribution import Crossing, pieces
from engines.superscaler.search import steady
from harness.api import PlanError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from emulation.profile import Profile
    from engines.superscaler.cost import Costs
    from engines.superscaler.graph import Graph
    from engines.superscaler.plan import Plan
    from engines.superscaler.precision import Precision
    from engines.superscaler.program import Program
    from engines.superscaler.redistribution import Prices, Step
    from engines.superscaler.search.searching import Retime

MANY = 64
"""Devices up to which a plan is emulated with all its micro-batches."""


@dataclass(frozen=True)
class StepPrices:
    """Seconds of redistribution steps, for phase 3: the same figures that chose the plan."""

    costs: Costs
    precision: Precision

    def __hash__(self) -> int:
        return id(self.costs)

    def __call__(self, step: Step | Crossing, shape: tuple[int, ...], dtype: str) -> float:
        """See `redistribution.Prices`."""
        width = BYTES[self.precision.of(dtype)]
        if step.kind in ("slice", "mask"):
            return 1e-9  # free, but a path with fewer of them is a simpler one
        if isinstance(step, Crossing) or step.kind == "exchange":
            sent = pieces(step.before, step.after, shape)
            return self.costs.messages([Message(one.source, one.target, one.elements * width) for one in sent])
        layout = step.after if step.kind == "all-gather" else step.before
        nbytes = math.prod(layout.local_shape(shape)) * width
        return self.costs.collective(step.kind, step.mesh, step.axes, nbytes)


def emulated(profile: Profile, precision: Precision, capacity: int, prices: Prices | None = None) -> Retime:
    """Seconds of a step by the emulator, and bytes on every device by a walk over the program.

    On more than `MANY` devices few micro-batches tell what all of them take, see `steady`.

    Args:
        profile: the cluster.
        precision: in which numbers the plan trains.
        capacity: bytes of a device.
        prices: of redistribution steps, for phase 3.

    Returns:
        A function that raises PlanError for a plan that takes more than the capacity; it is not emulated.
    """
    from engines.superscaler import memory
    from engines.superscaler.dependency import preserve
    from engines.superscaler.emulate import seconds as estimated

    def timed(program: Program) -> float:
        return estimated(program, profile, precision=precision).seconds

    def retime(graph: Graph, plan: Plan) -> tuple[float, Sequence[int]]:
        program = preserve(graph, plan, prices)
        short = steady.enough(graph, plan) if len(plan.devices) > MANY else plan.micro_batches
        fewer = steady.shorter(program, short)
        held = memory.peak(fewer if steady.keeps_as_much(program, fewer) else program, precision)
        memories = tuple(held[device].total for device in plan.devices)
        if max(memories) > capacity:
            raise PlanError(f"needs {max(memories)} bytes on a device that has {capacity}")
        return steady.extrapolated(program, short, timed), memories

    return retime
