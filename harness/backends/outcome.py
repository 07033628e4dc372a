"""From what a trial's processes left behind to how the attempt ended.

The order of belief: what the harness did to the processes (stopped them for time, memory or the user), then what the
processes wrote themselves (done, or an exception), then the exit code and the signal, then the words in the log.
"""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.backends.base import Outcome
from harness.backends.process import LOST
from harness.errors import StoreError
from harness.execution import journal
from harness.execution.child import EXIT_JOURNAL, OUT_OF_MEMORY
from harness.execution.zygote import STDERR, STDOUT
from harness.records import EmulationStamp, Failure, State, Value

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

TAIL_LINES = 40
TAIL_BYTES = 4096
_DUMPED_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+) in (?P<function>\S+)')


@dataclass(frozen=True)
class Remains:
    """What one rank left: its journal, its exit code, the end of its log."""

    rank: int
    exit_code: int
    events: Sequence[dict[str, Any]]
    log_tail: str

    @classmethod
    def read(cls, rank: int, exit_code: int, directory: Path) -> Remains:
        """From the directory the rank ran in."""
        tail = log_tail(directory / STDERR) or log_tail(directory / STDOUT)
        return cls(rank, exit_code, journal.read(directory / journal.FILE), tail)

    def event(self, kind: str) -> dict[str, Any]:
        """The last event of a kind, without its name; empty where there is none."""
        found: dict[str, Any] = next((e for e in reversed(self.events) if e["event"] == kind), {})
        return {k: v for k, v in found.items() if k != "event"}

    @property
    def done(self) -> bool:
        """Whether it ended with a whole result."""
        return self.exit_code == 0 and any(e["event"] == "done" for e in self.events)


@dataclass(frozen=True)
class Stopped:
    """Why the harness stopped a trial."""

    state: State
    message: str


def gather(remains: Sequence[Remains], *, stopped: Stopped | None, first: int, seconds: float, package: str) -> Outcome:
    """The outcome of an attempt whose ranks have all ended; `first` is the rank that ended badly first.

    Raises:
        StoreError: a rank could not write its journal.
    """
    failure, state = None, State.OK
    culprit = next((r for r in remains if r.rank == first), remains[0])
    if stopped is not None:
        state, failure = stopped.state, _stopped(stopped, culprit, package)
    elif not culprit.done:
        state, failure = _classify(culprit, package)
    elif differing := _differing_plans(remains):
        state, failure = State.FAILED, Failure(type="PlanMismatch", message=differing)
    stamp = culprit.event("done").get("emulation")
    circumstances = [r.event("circumstances") for r in remains]
    return Outcome(
        state=state,
        seconds=seconds,
        failure=failure,
        values=tuple(_values(remains)),
        plan_digest=str(remains[0].event("plan").get("digest", "")),
        packages={k: v for c in reversed(circumstances) for k, v in c.get("packages", {}).items()},
        emulation=EmulationStamp.model_validate(stamp) if stamp else None,
        peak_memory=max(int(c.get("peak_memory", 0)) for c in circumstances),
    )


def log_tail(path: Path) -> str:
    """The last lines of a log."""
    try:
        with path.open("rb") as log:
            log.seek(max(0, path.stat().st_size - TAIL_BYTES))
            text = log.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-TAIL_LINES:])


def _values(remains: Sequence[Remains]) -> list[Value]:
    found = [e for r in remains for e in r.events if e["event"] == "value"]
    return [Value.model_validate({k: v for k, v in e.items() if k != "event"}) for e in found]


def _differing_plans(remains: Sequence[Remains]) -> str:
    digests = {r.rank: str(r.event("plan").get("digest", "")) for r in remains}
    if len(set(digests.values())) == 1:
        return ""
    listed = ", ".join(f"rank {rank}: {digest[:12]}" for rank, digest in digests.items())
    return f"the ranks made different plans ({listed}); plan() must depend on nothing but the spec and the profile"


def _stopped(stopped: Stopped, culprit: Remains, package: str) -> Failure:
    number = -culprit.exit_code if LOST < culprit.exit_code < 0 else None
    return Failure(
        type=stopped.state.value,
        message=stopped.message,
        where=_dumped_frame(culprit.log_tail, package),
        signal=number,
        rank=culprit.rank,
        log_tail=culprit.log_tail,
    )


def _classify(culprit: Remains, package: str) -> tuple[State, Failure]:
    said = culprit.event("failure")
    if said:
        return State(said["state"]), Failure(
            type=said["type"],
            message=said["message"],
            where=said["where"],
            exit_code=culprit.exit_code,
            rank=culprit.rank,
            log_tail=culprit.log_tail,
        )
    if culprit.exit_code == EXIT_JOURNAL:
        raise StoreError(culprit.log_tail.strip() or "a trial could not write its journal: is the disk full?")
    state = State.CRASHED
    # The C++ and C libraries abort when memory runs out; the log says why.
    if culprit.exit_code < 0 and OUT_OF_MEMORY.search(culprit.log_tail):
        state = State.OOM
    return state, Failure(
        type=state.value,
        message=_ending(culprit.exit_code),
        where=_dumped_frame(culprit.log_tail, package),
        exit_code=culprit.exit_code if culprit.exit_code >= 0 else None,
        signal=-culprit.exit_code if LOST < culprit.exit_code < 0 else None,
        rank=culprit.rank,
        log_tail=culprit.log_tail,
    )


def _ending(exit_code: int) -> str:
    if exit_code == LOST:
        return "the process was lost together with the one it was forked from"
    if exit_code < 0:
        try:
            return f"killed by {signal.Signals(-exit_code).name} (signal {-exit_code})"
        except ValueError:
            return f"killed by signal {-exit_code}"
    return f"the process ended with exit code {exit_code} before it had reported a result"


def _dumped_frame(tail: str, package: str) -> str:
    """The engine's innermost frame in a stack that faulthandler dumped."""
    folder = f"/{package.replace('.', '/')}/"
    for frame in _DUMPED_FRAME.finditer(tail):
        name = frame["file"]
        if folder in name:
            return f"{name[name.index(folder) + 1 :]}:{frame['line']} in {frame['function']}"
    return ""
