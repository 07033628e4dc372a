"""The processes of one attempt on this machine, one a rank, that live and die together.

A rank that ends badly takes the others with it: they would only wait for it. The whole group shares one deadline and
one memory limit.
"""

from __future__ import annotations

import json
import shutil
import signal
import tempfile
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.backends.outcome import Remains, Stopped, gather
from harness.backends.process import TrialProcess, Zygote, total_proportional
from harness.execution import journal
from harness.execution.assignment import Assignment
from harness.execution.context import SPANS
from harness.records import State

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Literal

    from harness.backends.base import Outcome
    from harness.trial import Trial

GRACE = 10.0
"""Seconds between TERM and KILL."""
WATCH_MEMORY = 0.05
WATCH = 0.5
"""Seconds between looks at memory, descendants and logs, with a memory limit and without."""


@dataclass(frozen=True)
class Share:
    """The ranks of a trial that run on this machine."""

    ranks: tuple[int, ...]
    address: str = "127.0.0.1"
    """Of this machine, for the ranks on others."""
    scratch: str = ""
    """Made and deleted by the caller, because more than one group of this machine uses it; empty for one of its own."""


class RankGroup:
    """`base.Running` for processes of this machine."""

    def __init__(
        self,
        trial: Trial,
        directory: Path,
        zygote: Zygote,
        *,
        mode: Literal["run", "predict"],
        grace: float = GRACE,
        share: Share | None = None,
    ) -> None:
        self._trial = trial
        self._directory = directory.resolve()
        self._zygote = zygote
        self._grace = grace
        self._stopped: Stopped | None = None
        self._killed = False
        self._first: int | None = None
        self._share = share or Share(tuple(range(1 if mode == "predict" else trial.ranks)))
        self._scratch = self._share.scratch or (tempfile.mkdtemp(prefix="harness-") if mode == "run" else "")
        self._began = time.monotonic()
        self._deadline = self._began + trial.limits.timeout
        self._kill_at = float("inf")
        self._watch_every = WATCH_MEMORY if trial.limits.memory else WATCH
        self._watch_at = self._began + self._watch_every
        self._ranks: list[TrialProcess] = []
        try:
            for rank in self._share.ranks:
                self._ranks.append(self._start(rank, mode))
        except BaseException:
            self._abandon()
            raise

    def poll(self) -> Outcome | None:
        """Keep the limits; the outcome once every process has ended."""
        now = time.monotonic()
        for rank, process in zip(self._share.ranks, self._ranks, strict=True):
            before = process.exit_code
            process.poll()
            if before is None and process.exit_code is not None and self._first is None and self._ended_badly(process):
                self._first = rank
                self.give_up()
        if all(p.gone for p in self._ranks):
            return self._outcome(now)
        if any(p.exit_code is None for p in self._ranks):
            self._keep_limits(now)
        if now >= self._kill_at and not self._killed:
            self._kill()
        return None

    def pause(self) -> float:
        """Seconds to the next limit that may be reached."""
        if any(p.exit_code is not None and not p.gone for p in self._ranks):
            return 0.01
        now = time.monotonic()
        return max(0.0, min(self._deadline, self._kill_at, self._watch_at) - now) if not self._killed else WATCH_MEMORY

    def waitables(self) -> tuple[int, ...]:
        """The zygote's line, on which ends are reported."""
        return (self._zygote.fileno(),)

    def cancel(self) -> None:
        """TERM, then KILL; at once when asked again."""
        self.stop(Stopped(State.CANCELLED, "cancelled by the user"))

    def stop(self, reason: Stopped) -> None:
        """End it for a reason from outside."""
        if self._stopped is not None:
            self._kill()
            return
        self._stopped = reason
        self._terminate(self._grace)

    def give_up(self) -> None:
        """End it because a rank elsewhere ended badly."""
        self._terminate(min(self._grace, 1.0))

    def remains(self) -> list[Remains]:
        """What every rank left; for use once `poll` has said that they have ended."""
        # Every process is gone, so every exit code is known.
        return [
            Remains.read(rank, p.exit_code or 0, p.directory)
            for rank, p in zip(self._share.ranks, self._ranks, strict=True)
        ]

    @property
    def ranks(self) -> tuple[int, ...]:
        """Those that run on this machine."""
        return self._share.ranks

    @property
    def stopped(self) -> Stopped | None:
        """Why the harness stopped it, if it did."""
        return self._stopped

    def _start(self, rank: int, mode: Literal["run", "predict"]) -> TrialProcess:
        trial = self._trial
        place = self._directory / f"rank{rank}"
        place.mkdir()
        artifacts = self._directory / "artifacts"
        artifacts.mkdir(exist_ok=True)
        # CUDA maps more than it uses; there the watch alone keeps the limit.
        data_limit = 0 if trial.needs.gpus else trial.limits.memory
        Assignment(
            trial=trial,
            mode=mode,
            rank=rank,
            world_size=1 if mode == "predict" else trial.ranks,
            address=self._share.address,
            rendezvous=str(self._directory / "rendezvous"),
            scratch=self._scratch,
            artifacts=str(artifacts),
            data_limit=data_limit,
        ).write(place)
        return TrialProcess(self._zygote, place, data_limit=data_limit)

    def _ended_badly(self, process: TrialProcess) -> bool:
        return process.exit_code != 0 or journal.last(process.directory / journal.FILE) != "done"

    def _keep_limits(self, now: float) -> None:
        if now >= self._deadline and self._stopped is None and self._first is None:
            limit = self._trial.limits.timeout
            self.stop(Stopped(State.TIMEOUT, f"still running after {limit:g} s (limits.timeout)"))
        if now >= self._watch_at:
            self._watch_at = now + self._watch_every
            resident = sum(p.watch() for p in self._ranks)
            limit_bytes = self._trial.limits.memory
            if limit_bytes and resident > limit_bytes and self._stopped is None:
                self._check_memory(limit_bytes)

    def _check_memory(self, limit: int) -> None:
        held = total_proportional(self._ranks)
        if held > limit:
            from emulation.units import render

            message = f"held {render(held, 'B')}, more than {render(limit, 'B')} (limits.memory)"
            self._stopped = Stopped(State.OOM, message)
            self._kill()

    def _terminate(self, grace: float) -> None:
        self._kill_at = min(self._kill_at, time.monotonic() + grace)
        for process in self._ranks:
            if process.exit_code is None:
                process.signal(signal.SIGTERM)

    def _kill(self) -> None:
        self._killed = True
        for process in self._ranks:
            if process.exit_code is None:
                process.signal(signal.SIGKILL)

    def _outcome(self, now: float) -> Outcome:
        try:
            for process in self._ranks:
                process.cap_logs()
            write_timeline(self._directory)
            return gather(
                self.remains(),
                stopped=self._stopped,
                first=self._share.ranks[0] if self._first is None else self._first,
                seconds=now - self._began,
                package=self._trial.package,
            )
        finally:
            self._clean()

    def _clean(self) -> None:
        if self._share.scratch:
            # The caller shares these, and may still have keys to pass on.
            return
        if self._scratch:
            shutil.rmtree(self._scratch, ignore_errors=True)
        shutil.rmtree(self._directory / "rendezvous", ignore_errors=True)

    def _abandon(self) -> None:
        for process in self._ranks:
            process.signal(signal.SIGKILL)
        self._clean()


def write_timeline(attempt: Path) -> None:
    """Lay the ranks' timelines side by side among the artifacts of an attempt."""
    read = {p.parent.name: json.loads(p.read_text("utf-8")) for p in sorted(attempt.glob(f"rank*/{SPANS}"))}
    if read:
        from harness.execution import timeline

        (attempt / "artifacts").mkdir(exist_ok=True)
        timeline.write(attempt / "artifacts" / "trace.json", read)
