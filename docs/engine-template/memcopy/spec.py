"""What stands under `engine:` for `memcopy`. Imported to validate, so it stays light."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from harness.api import Better, Bytes, EngineSpec, Metric, MetricKind, Problem

if TYPE_CHECKING:
    from collections.abc import Iterable


class Spec(EngineSpec):
    """Copy one buffer to another, in pieces."""

    name: Literal["memcopy"]
    size: Bytes = Field(gt=0)
    """Bytes copied."""
    piece: Bytes = Field(default=1 << 20, gt=0)
    """Bytes copied at a time; not more than `size`."""

    VERSION: ClassVar[str] = "1"
    METRICS: ClassVar[tuple[Metric, ...]] = (
        Metric("copy_time", "s", MetricKind.TIME, Better.LOWER, "time of one whole copy"),
        Metric("bandwidth", "B/s", MetricKind.RATE, Better.HIGHER, "bytes copied per second"),
    )

    def check(self) -> Iterable[Problem]:
        """A piece larger than the whole is a slip worth naming."""
        if self.piece > self.size:
            yield Problem(("piece",), f"piece of {self.piece} B is larger than the buffer", f"at most {self.size} B")
