"""What the fake engine can be told."""

from typing import ClassVar

from harness.api import Better, EngineSpec, Metric, MetricKind


class Spec(EngineSpec):
    """`mode` names a function of the engine."""

    METRICS: ClassVar[tuple[Metric, ...]] = (
        Metric("time", "s", MetricKind.TIME, Better.LOWER, "a time", labels=("part",)),
        Metric("loss", "", MetricKind.SCORE, Better.LOWER, "may be anything", finite=False),
    )

    mode: str = "ok"
    folder: str = ""
    seconds: float = 0.0
    world: int = 1

    def ranks(self) -> int:
        return self.world
