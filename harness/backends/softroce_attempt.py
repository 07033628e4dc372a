"""One attempt at a trial in guests: waits for them to be up, then watches over a rank's process in each."""

from __future__ import annotations

import contextlib
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from emulation.softroce import GuestError, SoftRoceError
from harness.backends.base import Outcome
from harness.backends.group import write_timeline
from harness.backends.outcome import Remains, Stopped, gather
from harness.backends.process import LOG_CAP, cap_log
from harness.execution.assignment import Assignment
from harness.execution.zygote import STDERR, STDOUT
from harness.records import Failure, State

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Future
    from pathlib import Path

    from emulation.softroce import Cluster, Host, Task, Wire
    from harness.trial import Trial

WARM = "/run/warm"
"""Socket in a guest at which ranks are forked."""
RANK = f'mkdir -p "$0" && exec python3 -m harness.execution.warm run {WARM} "$1"'
POLL = 0.05
BOOT = 240.0
"""Seconds until every guest must answer."""
SETTLE = 5.0
"""Seconds a killed rank's end may take to be told; beyond that its guest hangs."""
WATCH = 0.5
"""Seconds between two looks at the logs."""


@dataclass(frozen=True)
class _Rank:
    """A rank's process in its guest."""

    number: int
    task: Task
    directory: Path


class GuestGroup:
    """`base.Running` in a cluster that has been powered on."""

    def __init__(self, trial: Trial, directory: Path, cluster: Cluster, wires: Sequence[Wire], *, grace: float) -> None:
        self._trial = trial
        self._directory = directory.resolve()
        self._cluster = cluster
        self._wires = tuple(wires)
        self._grace = grace
        self._scratch = f"/tmp/harness-{directory.resolve().parent.name}"
        self._began = time.monotonic()
        self._deadline = float("inf")
        self._kill_at = float("inf")
        self._give_up_at = float("inf")
        self._watch_at = 0.0
        self._stopped: Stopped | None = None
        self._first: int | None = None
        self._ranks: list[_Rank] = []
        self._judged: set[int] = set()
        self._worker = ThreadPoolExecutor(1, "softroce boot")
        self._ready: Future[dict[str, Any]] = self._worker.submit(self._prepare)

    def poll(self) -> Outcome | None:
        """Start the ranks once the guests are up; keep the limits; the outcome once every rank has ended."""
        if not self._ready.done():
            # Nothing of the trial runs yet. Whoever cancels need not wait for guests to boot.
            return self._end(State.CANCELLED, self._stopped.message) if self._stopped else None
        try:
            if not self._ranks:
                return self._start()
            return self._look_after()
        except SoftRoceError as error:
            return self._lose(str(error))

    def pause(self) -> float:
        """Guests have nothing to wait on together with files; they are asked often."""
        return POLL

    def waitables(self) -> Sequence[int]:
        """None."""
        return ()

    def cancel(self) -> None:
        """TERM in every guest, then KILL; at once when asked again."""
        self._stop(Stopped(State.CANCELLED, "cancelled by the user"))

    # Beginning

    def _prepare(self) -> dict[str, Any]:
        """Wait for the guests and set their wires; what they are.

        Raises:
            SoftRoceError: a guest is not up in time, or refuses.
        """
        if not self._cluster.up:
            self._cluster.await_up(BOOT)
            for host in self._cluster.hosts:
                host.start(["python3", "-m", "harness.execution.warm", "serve", WARM])
            for host in self._cluster.hosts:
                # Where it does not start, ranks start without it.
                host.run(["sh", "-c", f"until [ -S {WARM} ]; do sleep 0.05; done"], timeout=30)
        for host, wire in zip(self._cluster.hosts, self._wires, strict=True):
            host.set_wire(wire)
        return self._cluster.about()

    def _start(self) -> Outcome | None:
        """Start every rank; an outcome where there is nothing to start any more."""
        self._ready.result()
        if self._stopped:
            return self._end(State.CANCELLED, self._stopped.message)
        self._began = time.monotonic()
        self._deadline = self._began + self._trial.limits.timeout
        (self._directory / "artifacts").mkdir(exist_ok=True)
        for rank in range(self._trial.ranks):
            self._ranks.append(self._start_rank(rank))
        return None

    def _start_rank(self, rank: int) -> _Rank:
        host = self._host(rank)
        place = self._directory / f"rank{rank}"
        place.mkdir()
        Assignment(
            trial=self._trial,
            mode="run",
            rank=rank,
            world_size=self._trial.ranks,
            address=host.address,
            rendezvous=str(self._directory / "rendezvous"),
            scratch=self._scratch,
            artifacts=str(self._directory / "artifacts"),
            data_limit=self._trial.limits.memory,
        ).write(place)
        task = host.start(
            ["sh", "-c", RANK, self._scratch, str(place)],
            output=str(place / STDOUT),
            errors=str(place / STDERR),
            memory=self._trial.limits.memory,
        )
        return _Rank(rank, task, place)

    def _host(self, rank: int) -> Host:
        return self._cluster.hosts[rank % len(self._cluster)]

    # Looking after

    def _look_after(self) -> Outcome | None:
        now = time.monotonic()
        if self._cluster.lost:
            return self._lose(self._cluster.lost)
        for rank in self._ranks:
            if rank.task.over and rank.number not in self._judged:
                self._judge(rank)
        if len(self._judged) == len(self._ranks):
            return self._outcome()
        if now >= self._deadline and self._stopped is None and self._first is None:
            limit = self._trial.limits.timeout
            self._stop(Stopped(State.TIMEOUT, f"still running after {limit:g} s (limits.timeout)"))
        if now >= self._kill_at:
            self._kill(now)
        if now >= self._give_up_at:
            self._power_off()
            return self._outcome()
        if now >= self._watch_at:
            self._watch_at = now + WATCH
            self._cap_logs()
        return None

    def _judge(self, rank: _Rank) -> None:
        """Notice a rank's end; one that ended badly takes the others with it."""
        self._judged.add(rank.number)
        if rank.task.wait(0).out_of_memory and self._stopped is None:
            self._stopped = Stopped(State.OOM, self._no_memory())
        if self._first is None and (self._stopped or not self._remains(rank).done):
            self._first = rank.number
            self._terminate(min(self._grace, 1.0))

    def _no_memory(self) -> str:
        from emulation.units import render

        if limit := self._trial.limits.memory:
            return f"a rank needed more than {render(limit, 'B')} (limits.memory)"
        return f"a guest ran out of its {render(self._cluster.memory, 'B')} of memory"

    def _stop(self, reason: Stopped) -> None:
        if self._stopped is not None:
            self._kill_at = 0.0
            return
        self._stopped = reason
        self._terminate(self._grace)

    def _terminate(self, grace: float) -> None:
        self._kill_at = min(self._kill_at, time.monotonic() + grace)
        self._signal(signal.SIGTERM)

    def _kill(self, now: float) -> None:
        self._kill_at = float("inf")
        self._give_up_at = min(self._give_up_at, now + SETTLE)
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        for rank in self._ranks:
            if not rank.task.over:
                # A guest that hangs does not answer; its end comes by the time it is given.
                with contextlib.suppress(SoftRoceError):
                    rank.task.signal(number)

    def _remains(self, rank: _Rank) -> Remains:
        code = rank.task.wait(0).code if rank.task.over else -signal.SIGKILL
        return Remains.read(rank.number, code, rank.directory)

    def _cap_logs(self) -> None:
        for rank in self._ranks:
            for name in (STDOUT, STDERR):
                cap_log(rank.directory / name, LOG_CAP)

    # Ending

    def _outcome(self) -> Outcome:
        from dataclasses import replace

        seconds = time.monotonic() - self._began
        try:
            self._cap_logs()
            write_timeline(self._directory)
            outcome = gather(
                [self._remains_after_all(rank) for rank in self._ranks],
                stopped=self._stopped,
                first=self._first or 0,
                seconds=seconds,
                package=self._trial.package,
            )
            return replace(outcome, hardware=self._hardware())
        finally:
            self._clean()

    def _remains_after_all(self, rank: _Rank) -> Remains:
        try:
            return self._remains(rank)
        except SoftRoceError as error:
            # Its guest was powered off because it did not let go of it, or it could not even be started.
            code = 1 if isinstance(error, GuestError) else -signal.SIGKILL
            found = Remains.read(rank.number, code, rank.directory)
            return Remains(rank.number, code, found.events, found.log_tail or str(error))

    def _lose(self, why: str) -> Outcome:
        """A guest is gone: the attempt says nothing about the trial, unless it was being stopped anyway."""
        self._power_off()
        if self._stopped is not None and self._ranks:
            return self._outcome()
        if self._stopped is not None:
            return self._end(State.CANCELLED, self._stopped.message)
        failure = Failure(type="GuestLost", message=f"a guest of the cluster was lost: {why}")
        seconds = time.monotonic() - self._began
        self._clean()
        return Outcome(State.CRASHED, seconds, failure, lost=True)

    def _end(self, state: State, message: str) -> Outcome:
        self._power_off()
        self._clean()
        return Outcome(state, time.monotonic() - self._began, Failure(type=state.value, message=message))

    def _power_off(self) -> None:
        """Guests that hang, are half booted or half lost are of no use to the next trial."""
        self._cluster.close()

    def _keep_logs(self) -> None:
        for host in self._cluster.hosts:
            target = self._directory / f"guest{host.number}"
            target.mkdir(exist_ok=True)
            for log in (*host.folder.glob("*.log"), *host.folder.glob("counters.json")):
                with contextlib.suppress(OSError):
                    shutil.copy(log, target)

    def _hardware(self) -> dict[str, Any]:
        """Of the guests, in the terms that this machine's is told in."""
        from harness.provenance import cpu_model, machine_fingerprint

        about = self._ready.result()
        return {
            "fingerprint": machine_fingerprint(),
            "cpu": f"{cpu_model()} ({about['accelerator']})",
            "logical_cores": about["processors"],
            "usable_cores": about["processors"],
            "memory": about["memory"],
            "kernel": about["kernel"],
            "machine": "x86_64",
            "rdma": about["rdma"],
            "guests": {**about, "wires": [vars(wire) for wire in self._wires]},
        }

    def _clean(self) -> None:
        self._worker.shutdown(wait=False, cancel_futures=True)
        self._keep_logs()
        if not self._cluster.lost:
            for host in self._cluster.hosts:
                with contextlib.suppress(SoftRoceError):
                    host.run(["rm", "-rf", self._scratch], timeout=10)
        shutil.rmtree(self._directory / "rendezvous", ignore_errors=True)
