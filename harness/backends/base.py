"""What every backend offers the runner.

A backend says what it has (`capabilities`), starts one attempt at a trial (`start`) and hands back an `Attempt` in
progress. The runner polls it; nothing here blocks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from harness.records import EmulationStamp, Failure, State, Value
    from harness.trial import Trial


@dataclass(frozen=True)
class Capabilities:
    """What a backend has; sizes in bytes and per host."""

    hosts: int = 1
    gpus: int = 0
    gpu_memory: int = 0
    """Of the smallest GPU."""
    memory: int = 0
    """Of the smallest host."""
    rdma: bool = False
    faults: frozenset[str] = frozenset()
    """Kinds of faults that it can bring about."""


@dataclass(frozen=True)
class Outcome:
    """How one attempt ended, and everything it brought back."""

    state: State
    seconds: float
    failure: Failure | None = None
    values: tuple[Value, ...] = ()
    plan_digest: str = ""
    packages: dict[str, str] = field(default_factory=dict)
    emulation: EmulationStamp | None = None
    peak_memory: int = 0
    """Bytes of the rank that used most."""
    lost: bool = False
    """Its node went away: the attempt says nothing about the trial."""
    hardware: dict[str, Any] = field(default_factory=dict)
    """Of the machine it ran on, where that is not this one."""


class Running(Protocol):
    """An attempt in progress."""

    def poll(self) -> Outcome | None:
        """Look after it; its outcome once it has ended."""

    def pause(self) -> float:
        """Seconds until it wants to be polled again, unless `waitables` wake the runner before."""

    def waitables(self) -> Sequence[int]:
        """Descriptors that become readable when something happened."""

    def cancel(self) -> None:
        """Ask it to end: TERM now, KILL after the grace time. Asked twice, KILL at once."""


class Backend(Protocol):
    """Where trials run."""

    name: str

    def capabilities(self, trial: Trial) -> Capabilities:
        """What it has for this trial."""

    def start(self, trial: Trial, directory: Path) -> Running:
        """Begin one attempt, with `directory` (new and empty) for its logs and artifacts."""

    def close(self) -> None:
        """Stop whatever it still has running."""


def lacks(trial: Trial, has: Capabilities) -> str:
    """Which of a trial's needs are not met, each with what is there, or an empty string."""
    from emulation.units import render

    needs = trial.needs
    missing = [
        f"{name}: needs {wanted}, has {there}"
        for name, wanted, there in (("hosts", needs.hosts, has.hosts), ("GPUs per host", needs.gpus, has.gpus))
        if wanted > there
    ]
    missing += [
        f"{name}: needs {render(wanted, 'B')}, has {render(there, 'B')}"
        for name, wanted, there in (
            ("GPU memory", needs.gpu_memory, has.gpu_memory),
            ("memory per host", needs.memory, has.memory),
        )
        if wanted > there
    ]
    if needs.rdma and not has.rdma:
        missing.append("RDMA: needs an RDMA device, has none")
    if beyond := dict.fromkeys(f["kind"] for f in trial.faults if f["kind"] not in has.faults):
        can = f"; here only {', '.join(sorted(has.faults))}" if has.faults else ""
        missing.append(f"faults: needs {', '.join(beyond)}, which only an emulated cluster can be given{can}")
    return "; ".join(missing)
