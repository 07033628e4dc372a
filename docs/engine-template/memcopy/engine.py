"""The adapter: plan, predict and run. Imported only in the process that runs a trial."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from emulation.graph import Workload
from harness.api import EmulationContext, Engine, HarnessError, Measurement, Plan, RunContext
from memcopy.spec import Spec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from emulation.profile import Profile


class MemcopyEngine(Engine):
    """Copies a buffer piece by piece."""

    Spec = Spec

    def plan(self, spec: Spec, profile: Profile) -> Plan:
        """The pieces, as (first byte, bytes)."""
        starts = range(0, spec.size, spec.piece)
        return Plan({"pieces": [[start, min(spec.piece, spec.size - start)] for start in starts]})

    def predict(self, plan: Plan, context: EmulationContext) -> Iterator[Measurement]:
        """One host copy after another, at the profile's copy bandwidth."""
        workload = Workload("memcopy")
        host = f"{context.profile.host_names()[0]}/cpu"
        previous: tuple[int, ...] = ()
        for _, nbytes in plan.payload["pieces"]:
            previous = (workload.copy(host, host, nbytes, after=previous),)
        result = context.simulate(workload)
        low, high = result.band(result.seconds)
        total = sum(nbytes for _, nbytes in plan.payload["pieces"])
        yield Measurement("copy_time", result.seconds, band=(low, high))
        yield Measurement("bandwidth", total / result.seconds, band=(total / high, total / low))

    def run(self, plan: Plan, context: RunContext) -> Iterator[Measurement]:
        """Copy for real; what arrived is compared before anything is timed."""
        pieces = [(start, start + nbytes) for start, nbytes in plan.payload["pieces"]]
        total = pieces[-1][1]
        source = np.random.default_rng(context.repeat.seed).integers(0, 256, total, dtype=np.uint8)
        target = np.zeros_like(source)

        def copy() -> None:
            for start, end in pieces:
                target[start:end] = source[start:end]

        copy()
        if not np.array_equal(source, target):
            raise HarnessError("the copy differs from its source")
        seconds = context.sample(copy)
        yield Measurement("copy_time", seconds)
        yield Measurement("bandwidth", [total / s for s in seconds])


ENGINE = MemcopyEngine()
