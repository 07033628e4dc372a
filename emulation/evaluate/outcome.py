"""How a run ended, where something can go wrong: a result like any other, not an exception."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from emulation.recovery import after_deaths
from emulation.units import PICOSECONDS_PER_SECOND, render

if TYPE_CHECKING:
    from emulation.evaluate.events import Run
    from emulation.evaluate.sweep import Sweep


@dataclass(frozen=True)
class Outcome:
    """How a run ended; times are seconds from its start."""

    state: Literal["completed", "restarted", "aborted", "out of memory"]
    at: float
    """When it ended; of one that ran out of memory, when it did."""
    reason: str = ""
    """What happened; empty where nothing did."""
    restarts: int = 0
    lost: float = 0.0
    """Seconds without lasting progress."""

    @property
    def ended(self) -> bool:
        """Whether all its work was done."""
        return self.state in {"completed", "restarted"}


def recover(run: Run | Sweep) -> None:
    """Lay the time that restarts after deaths of hosts take into a run that went through as if nobody had died."""
    scenario = run.tasks.scenario
    if scenario is None or run.outcome is not None or not scenario.deaths or scenario.aborts:
        return
    hosts = run.tasks.hosts
    deaths = [death for death in scenario.deaths if death.host in hosts]
    course = after_deaths(max(run.end, default=0), deaths, len(hosts))
    run.start = [course.started(moment) for moment in run.start]
    run.end = [course.ended(moment) for moment in run.end]
    if course.failures:
        who = " and ".join(f"{d.host} died at {render(d.at, 's')}" for d in deaths[: course.failures])
        elapsed, lost = (moment / PICOSECONDS_PER_SECOND for moment in (course.elapsed, course.lost))
        run.outcome = Outcome("restarted", elapsed, who, course.failures, lost)
