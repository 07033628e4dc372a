"""The record of one trial: what was asked, what came out, and under which circumstances.

A record is final once `record.json` stands in its trial directory; it is written aside and renamed, so that a
reader sees either no record or a whole one. Files are the truth; the index in `store` is derived from them.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

RECORD_VERSION: Literal[1] = 1


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, ser_json_inf_nan="strings")


class State(StrEnum):
    """How a trial ended."""

    OK = "ok"
    FAILED = "failed"
    """The engine raised."""
    CRASHED = "crashed"
    """A signal, or an exit without a result."""
    OOM = "oom"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"
    UNSUPPORTED = "unsupported"
    """The backend lacks a need; nothing ran."""


class Kind(StrEnum):
    """Where a number comes from. `published` numbers live in references alone."""

    MEASURED = "measured"
    EMULATED = "emulated"


class Value(_Part):
    """One measurement as recorded; times in seconds, sizes in bytes, rates in bytes per second."""

    name: str
    labels: dict[str, str] = Field(default_factory=dict)
    unit: str
    kind: Kind
    better: Literal["higher", "lower", "target"]
    samples: list[float]
    """Raw, in the order taken; medians and intervals are derived from them (`measure.summarise`)."""
    band: tuple[float, float] | None = None
    """Emulated: the claimed 80 % band."""
    rank: int = 0


class TargetStamp(_Part):
    """Where the trial ran."""

    backend: Literal["local", "emulated", "ray", "softroce"]
    hardware: str
    """Name of the hardware profile."""
    reason: str = ""
    """Why this backend, where `auto` chose it."""


class EmulationStamp(_Part):
    """What an emulated value rests on."""

    model_version: str
    profile: str
    profile_digest: str
    grade: Literal["datasheet", "prior", "measured"]
    """The weakest grade among the figures used."""
    events: int = 0
    """Events the evaluator processed."""
    outcome: str = "completed"
    """How the emulated runs ended: `completed`, or `restarted` where the faults of the spec made them go back."""
    lost: float = 0.0
    """Seconds that passed in them without lasting progress."""
    goodput: float | None = None
    """Part of a long job's time that is useful, where the faults of the spec give a time between failures."""


class Failure(_Part):
    """Why a trial has no (whole) result."""

    type: str
    message: str
    where: str = ""
    """The engine's own frame: `file:line in function`."""
    exit_code: int | None = None
    signal: int | None = None
    rank: int | None = None
    log_tail: str = ""


class Attempt(_Part):
    """One try at a trial."""

    number: int
    state: State
    seconds: float
    failure: Failure | None = None


class Artifact(_Part):
    """A file kept beside the record."""

    path: str
    """Relative to the trial directory."""
    sha256: str
    bytes: int


class Provenance(_Part):
    """The circumstances; nothing here enters a key or a digest."""

    git: dict[str, Any] = Field(default_factory=dict)
    """commit, dirty, diff (SHA-256 of the uncommitted change)."""
    packages: dict[str, str] = Field(default_factory=dict)
    """Versions of the packages the trial imported."""
    hardware: dict[str, Any] = Field(default_factory=dict)
    """cpu, cores, memory, gpus, nics, driver, topology, container limits, as found."""
    environment: dict[str, str] = Field(default_factory=dict)
    """Allow-listed variables only."""
    load_average: tuple[float, float, float] | None = None
    python: str = ""
    harness: str = ""


class Record(_Part):
    """One trial."""

    version: Literal[1] = RECORD_VERSION
    key: str
    """Run key: SHA-256 of everything that can change the result."""
    spec: str
    """The experiment's name."""
    cell: str
    """Stable name of the sweep cell, `default` without a sweep."""
    swept: dict[str, Any] = Field(default_factory=dict)
    """Path to value, in the order of the sweep."""
    target: TargetStamp
    resolved: dict[str, Any]
    """The whole resolved spec of this cell, defaults included."""
    origins: dict[str, str] = Field(default_factory=dict)
    """Dotted path to `file:line:column`, `--set #n`, `sweep` or `default`."""
    engine: str
    engine_version: str
    plan_digest: str = ""
    seed: int
    state: State
    failure: Failure | None = None
    values: list[Value] = Field(default_factory=list)
    emulation: EmulationStamp | None = None
    artifacts: list[Artifact] = Field(default_factory=list)
    result_digest: str = ""
    """SHA-256 over key, plan digest, state and values: equal for equal emulated runs."""
    started: str
    """UTC, ISO 8601."""
    seconds: float
    attempts: list[Attempt] = Field(default_factory=list)
    provenance: Provenance = Field(default_factory=Provenance)

    @property
    def kind(self) -> Kind:
        """Whether its numbers are measured or emulated."""
        return Kind.EMULATED if self.target.backend == "emulated" else Kind.MEASURED
