"""The adapter: what the harness calls."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from engines.superscaler.spec import Spec as SuperscalerSpec
from harness.api import Engine, Plan

if TYPE_CHECKING:
    from collections.abc import Iterator

    from emulation.profile import Profile
    from engines.superscaler.job import Job
    from harness.api import EmulationContext, EngineSpec, Measurement, RunContext


class SuperscalerEngine(Engine):
    """Plans a model in three phases, proves the plan, and runs or predicts it."""

    Spec: ClassVar[type[EngineSpec]] = SuperscalerSpec

    def __init__(self) -> None:
        self._latest: Job | None = None
        """What was planned in this process."""

    def plan(self, spec: SuperscalerSpec, profile: Profile) -> Plan:
        """The model's name and sizes, and the whole plan."""
        from engines.superscaler.job import planned

        self._latest = planned(spec, profile)
        return Plan(self._latest.to_json())

    def predict(self, plan: Plan, context: EmulationContext) -> Iterator[Measurement]:
        """The plan's program on the profile's devices, in the emulator."""
        from engines.superscaler.job import Job
        from engines.superscaler.prediction import predict

        job = Job.from_json(plan.payload)
        # What the search found beside its winner is no part of the plan; it is told where plan and prediction meet.
        yield from predict(self._latest if job == self._latest else job, context)

    def run(self, plan: Plan, context: RunContext) -> Iterator[Measurement]:
        """The same program on `torch.distributed`, after it was proven equal to one device."""
        from engines.superscaler.job import Job
        from engines.superscaler.training import run

        yield from run(Job.from_json(plan.payload), context)


ENGINE = SuperscalerEngine()
