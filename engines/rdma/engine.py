"""The adapter: what the harness calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from engines.rdma.spec import ITEM_BYTES, size_label
from engines.rdma.spec import Spec as RdmaSpec
from harness.api import Engine, Plan

if TYPE_CHECKING:
    from collections.abc import Iterator

    from emulation.profile import Profile
    from harness.api import EmulationContext, EngineSpec, Measurement, RunContext


@dataclass(frozen=True)
class TransferPlan(Plan):
    """What is moved and how, and over what on this machine."""

    provider: str = "auto"
    """Not in the payload: a prediction, a run over shared memory and one over an adapter are about the same plan."""


class RdmaEngine(Engine):
    """Moves tensors between processes, several ways, on the same bytes; and trains models over them."""

    Spec: ClassVar[type[EngineSpec]] = RdmaSpec

    def plan(self, spec: RdmaSpec, profile: Profile) -> Plan:  # noqa: ARG002 - what is moved does not depend on hardware
        """List what is moved and how; the same on every backend."""
        if spec.training:
            from engines.rdma.training import plan

            return TransferPlan(plan.payload(spec.training, spec.transports, spec.signal), provider=spec.provider)
        from engines.rdma import models
        from engines.rdma.tensors import Payload, Tensor

        payloads = [models.load(name) for name in spec.models]
        for size in spec.sizes:
            shape = (size // ITEM_BYTES[spec.dtype],)
            payloads.append(Payload(size_label(size), (Tensor("tensor", shape, spec.dtype),)))
        return TransferPlan(
            {
                "transports": list(spec.transports),
                "payloads": [payload.to_json() for payload in payloads],
                "placement": spec.placement,
                "signal": spec.signal,
                "allocator": spec.allocator,
            },
            provider=spec.provider,
        )

    def predict(self, plan: TransferPlan, context: EmulationContext) -> Iterator[Measurement]:
        """Step times from the profile's software costs and links; over `sim`, of real bytes packet by packet."""
        if "training" in plan.payload:
            from engines.rdma.training import prediction
            from engines.rdma.training.plan import Job

            yield from prediction.predict(Job.from_plan(plan), context)
            return
        from engines.rdma import lowering, replay

        yield from (replay if plan.provider == "sim" else lowering).predict(plan, context)

    def run(self, plan: TransferPlan, context: RunContext) -> Iterator[Measurement]:
        """Move the payloads for real."""
        if "training" in plan.payload:
            from engines.rdma.training import job
            from engines.rdma.training.plan import Job

            yield from job.run(Job.from_plan(plan, provider=plan.provider), context)
            return
        from engines.rdma import worker

        yield from worker.run(worker.Job.from_plan(plan, provider=plan.provider), context)


ENGINE = RdmaEngine()
