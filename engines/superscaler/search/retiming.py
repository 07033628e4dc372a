"""The best plans timed again by the emulator: lowered as they would be run, with everything that shares links."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engines.superscaler.cost import Message
from engines.superscaler.graph import BYTES
from engines.superscaler.redistribution import Crossing, pieces

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from emulation.profile import Profile
    from engines.superscaler.cost import Costs
    from engines.superscaler.graph import Graph
    from engines.superscaler.plan import Plan
    from engines.superscaler.precision import Precision
    from engines.superscaler.redistribution import Step


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


def emulated(
    profile: Profile, precision: Precision, costs: Costs
) -> Callable[[Graph, Plan], tuple[float, Sequence[int]]]:
    """Seconds of a step by the emulator, and bytes on every device by a walk over the program."""
    from engines.superscaler import memory
    from engines.superscaler.dependency import preserve
    from engines.superscaler.emulate import seconds as estimated

    def retime(graph: Graph, plan: Plan) -> tuple[float, Sequence[int]]:
        program = preserve(graph, plan, StepPrices(costs, precision))
        held = memory.peak(program, precision)
        return estimated(program, profile, precision=precision).seconds, tuple(
            held[device].total for device in plan.devices
        )

    return retime
