"""All that an engine may import from the harness.

An engine is a package with two modules that the harness looks for::

    <package>/spec.py      class Spec(EngineSpec): the engine's fields, metrics and cross-field checks; light to import
    <package>/engine.py    ENGINE = <Name>(): plan, predict and run; imported only in the child that runs a trial

The life of a trial: `Spec` is validated, `plan()` turns it into a backend-independent `Plan`, then either
`predict()` says what the plan would take on an emulated cluster, or `run()` carries it out for real. Both yield
`Measurement`s; the harness labels them `emulated` or `measured`, so an engine cannot mislabel one.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from emulation.units import (
    Bytes,
    Duration,
    FlopRate,
    Flops,
    Fraction,
    Rate,
    Strict,
)
from harness.allocator import retain_freed_memory
from harness.canonical import digest
from harness.errors import BackendError, EnvironmentLacks, HarnessError, PlanError, Problem, nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from emulation.evaluate import Result
    from emulation.graph import Workload
    from emulation.profile import Profile
    from emulation.program import Program

__all__ = [
    "BackendError",
    "Better",
    "Bytes",
    "Duration",
    "EmulationContext",
    "Engine",
    "EngineSpec",
    "EnvironmentLacks",
    "FlopRate",
    "Flops",
    "Fraction",
    "HarnessError",
    "Measurement",
    "Metric",
    "MetricKind",
    "Plan",
    "PlanError",
    "Problem",
    "Rate",
    "Rendezvous",
    "Repeat",
    "RunContext",
    "nearest",
    "retain_freed_memory",
]


class Better(StrEnum):
    """Which way a metric improves."""

    HIGHER = "higher"
    LOWER = "lower"
    TARGET = "target"
    """Neither: nearer to a stated value is better, or the figure only describes."""


class MetricKind(StrEnum):
    """What sort of quantity a metric is; decides which comparisons make sense."""

    TIME = "time"
    RATE = "rate"
    RATIO = "ratio"
    SCORE = "score"
    BYTES = "bytes"
    COUNT = "count"


@dataclass(frozen=True)
class Metric:
    """A declared metric: measurements of undeclared names are an error."""

    name: str
    unit: str
    """Base unit: `s`, `B`, `B/s`, `FLOP/s`, `x`, `%`, or empty for a count."""
    kind: MetricKind
    better: Better
    description: str
    labels: tuple[str, ...] = ()
    """Names of the labels its measurements carry (`transport`, `model`); tables lay results out by them."""
    finite: bool = True
    """Whether NaN and infinity are refused."""


@dataclass(frozen=True)
class Measurement:
    """One value of one metric, with every sample behind it.

    `samples` are in the metric's unit. A single number stands for one sample.
    """

    name: str
    samples: Sequence[float] | float
    labels: Mapping[str, str] = field(default_factory=dict)
    band: tuple[float, float] | None = None
    """Emulated values only: the claimed 80 % band (low, high), in the metric's unit."""

    def values(self) -> tuple[float, ...]:
        """The samples as a tuple of floats."""
        if isinstance(self.samples, int | float):
            return (float(self.samples),)
        return tuple(float(s) for s in self.samples)

    def problem(self, metrics: Mapping[str, Metric]) -> str:
        """Why this measurement cannot be recorded, or an empty string."""
        metric = metrics.get(self.name)
        if metric is None:
            hint = nearest(self.name, metrics)
            return f"metric {self.name!r} is not declared" + (f"; did you mean {hint!r}?" if hint else "")
        if not self.values():
            return f"metric {self.name!r} has no samples"
        if set(self.labels) != set(metric.labels):
            return f"metric {self.name!r} needs labels {sorted(metric.labels)}, got {sorted(self.labels)}"
        if metric.finite and not all(map(math.isfinite, self.values())):
            return f"metric {self.name!r} has a sample that is not finite"
        return ""


class EngineSpec(Strict):
    """Base of an engine's `Spec`: what stands under `engine:` in a spec file, beside `name`.

    Keep its module light: pydantic and this module, no numpy, no torch. It is imported to validate.
    """

    name: str
    """The engine's name, as in `engine: {name: ...}`."""

    VERSION: ClassVar[str] = "1"
    """Raise it when the same spec would give other numbers: it is part of every run key."""
    METRICS: ClassVar[tuple[Metric, ...]] = ()
    UNHASHED: ClassVar[frozenset[str]] = frozenset()
    """Fields that cannot change a result (a display choice); every other field is part of the run key."""

    def check(self) -> Iterable[Problem]:
        """Cross-field mistakes; `path` starts below `engine` (`("sizes", 2)`)."""
        return ()

    def ranks(self) -> int:
        """How many processes a real run of this spec needs."""
        return 1

    def packages(self) -> tuple[str, ...]:
        """Distributions that a real run of this spec imports beyond those in `harness.guests.PACKAGES` (`torch`).

        Guests are given them; anywhere else they are the user's to install.
        """
        return ()


@dataclass(frozen=True)
class Plan:
    """What is to be done, independent of the backend that does it.

    Two results with equal plan digests are about the same thing: that is how a prediction finds its measurement.
    """

    payload: Mapping[str, Any]
    """JSON values only."""

    @property
    def digest(self) -> str:
        """SHA-256 over the canonical payload."""
        return digest(dict(self.payload))


@dataclass(frozen=True)
class Repeat:
    """How often a measured thing is done."""

    warmup: int = 1
    runs: int = 5
    seed: int = 0


class Rendezvous(Protocol):
    """A small key-value board that every rank of one trial can read and write.

    It is for addresses and other control data, before the first byte is measured; it is not a transport.
    """

    def set(self, key: str, value: str) -> None:
        """Publish; a key is written once."""

    def get(self, key: str, timeout: float = 30.0) -> str:
        """Wait for a key.

        Raises:
            TimeoutError: it was not published within `timeout` seconds.
        """

    def barrier(self, name: str, timeout: float = 30.0) -> None:
        """Wait until every rank has come to the barrier of this name."""


class RunContext(Protocol):
    """What a real run is given. One per rank."""

    rank: int
    world_size: int
    address: str
    """The address under which the trial's other ranks reach this one; listen there, and publish it."""
    repeat: Repeat
    profile: Profile
    """The hardware profile named in the spec (what the plan was made for)."""
    scratch: Path
    """A directory shared by the trial's ranks on one host; deleted afterwards."""
    artifacts: Path
    """What is written here is kept with the record."""
    rendezvous: Rendezvous

    def sample(
        self, action: Callable[[], object], *, warmup: int | None = None, runs: int | None = None
    ) -> list[float]:
        """Wall-clock seconds of each repetition of `action`, after the warm-up (defaults: `repeat`)."""

    def span(self, name: str, stream: str = "main", **args: Any) -> AbstractContextManager[None]:
        """Put a stretch of time on the trial's timeline (Perfetto)."""

    def init_process_group(self, backend: str = "gloo") -> None:
        """Join the trial's ranks in a `torch.distributed` process group (imports torch)."""


class EmulationContext(Protocol):
    """What a prediction is given."""

    profile: Profile
    repeat: Repeat
    artifacts: Path

    def simulate(self, workload: Workload | Program, *, name: str = "") -> Result:
        """Evaluate a workload graph, or a program over a mesh, on the profile; keep its timeline under `name`."""


class Engine(ABC):
    """One paper's system, behind the interface the harness drives."""

    Spec: ClassVar[type[EngineSpec]]

    def metrics(self) -> tuple[Metric, ...]:
        """The metrics this engine may report."""
        return self.Spec.METRICS

    @abstractmethod
    def plan(self, spec: Any, profile: Profile) -> Plan:
        """Decide what to do, on hardware like `profile`; pure, and equal on every rank.

        Raises:
            PlanError: it cannot be done there (the message says what is short, and by how much).
        """

    @abstractmethod
    def predict(self, plan: Plan, context: EmulationContext) -> Iterator[Measurement]:
        """What the plan would take on the emulated cluster; deterministic for one seed."""

    @abstractmethod
    def run(self, plan: Plan, context: RunContext) -> Iterator[Measurement]:
        """Carry the plan out, on this rank; rank 0 usually yields.

        Measurements are recorded as they are yielded, so that what was measured before a crash is kept.
        """
