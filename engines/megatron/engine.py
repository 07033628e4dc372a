"""The adapter: what the harness calls."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from engines.megatron.plan import Job
from engines.megatron.spec import Spec as MegatronSpec
from harness.api import Engine, Plan

if TYPE_CHECKING:
    from collections.abc import Iterator

    from emulation.profile import Profile
    from harness.api import EmulationContext, EngineSpec, Measurement, RunContext


class MegatronEngine(Engine):
    """Trains a GPT under one plan of tensor, pipeline and data parallelism."""

    Spec: ClassVar[type[EngineSpec]] = MegatronSpec

    def plan(self, spec: MegatronSpec, profile: Profile) -> Plan:  # noqa: ARG002 - the degrees are given, not found
        """The model's shape, the batch and the degrees; the same on every backend."""
        return Plan(Job.from_spec(spec).to_json())

    def predict(self, plan: Plan, context: EmulationContext) -> Iterator[Measurement]:
        """The step as a workload graph, on the profile's devices."""
        from engines.megatron import lowering

        yield from lowering.predict(Job.from_json(plan.payload), context)

    def run(self, plan: Plan, context: RunContext) -> Iterator[Measurement]:
        """Train for real, after checking the step against one process."""
        from engines.megatron import training

        yield from training.run(Job.from_json(plan.payload), context)


ENGINE = MegatronEngine()
