"""Carry out trials and keep their records.

One loop, one thread. Each round starts what may start, looks after what runs, and sleeps until something happens.
Predictions run several at a time; measured trials one at a time, because two would disturb each other, and under a
lock, because another process may work on the same directory.

Before a trial starts, its lock is taken and its record looked for again: of two processes on one directory only one
runs a cell, and the other takes its record over. The kernel drops the locks of a process that is killed, and a
trial directory without a record counts for nothing, so running the same command again finishes what is missing.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from harness import provenance
from harness import store as storage
from harness.backends import open_backend
from harness.backends.base import lacks
from harness.errors import BackendError, EnvironmentLacks, StoreError
from harness.execution import locks
from harness.execution.assemble import record_of
from harness.progress import Event, Silent
from harness.records import Attempt, Failure, Record, State

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from filelock import BaseFileLock

    from harness.backends.base import Backend, Outcome, Running
    from harness.progress import Listener
    from harness.store import Store
    from harness.trial import Trial

RETRIED = frozenset({State.CRASHED, State.OOM, State.TIMEOUT})
UNFINISHED = frozenset({State.CANCELLED, State.UNSUPPORTED})
"""No results to keep: the user stopped it, or nothing ran and the need may be met by now."""
FREE_RETRIES = 1
"""Attempts lost with their node that do not count against `limits.retries`."""
LONGEST_SLEEP = 0.25
LOCKED_PAUSE = 0.05


@dataclass(frozen=True)
class RunOptions:
    """How to run, as the command line says it."""

    mode: Literal["cached", "retry", "force", "read-only"] = "cached"
    jobs: int = 0
    """Predictions at a time; 0 is one a core."""
    fail_fast: bool = False
    ray_address: str = ""
    grace: float = 10.0
    """Seconds between TERM and KILL when a trial is stopped."""


@dataclass(frozen=True)
class Ran:
    """What came of a run."""

    records: list[Record]
    """In the order of the trials; those never reached are missing."""
    interrupted: bool = False
    executed: int = 0
    """Trials that were run now, not taken over."""
    missing: tuple[Trial, ...] = ()


@dataclass
class _Job:
    """A trial on its way."""

    trial: Trial
    known: str
    """Signature of its record when the run began."""
    lock: BaseFileLock
    running: Running | None = None
    directory: Path | None = None
    started: str = ""
    attempts: tuple[Attempt, ...] = ()
    lost: int = 0
    waited: bool = False


def run(
    trials: Sequence[Trial], *, store: Store, options: RunOptions | None = None, listener: Listener | None = None
) -> Ran:
    """Run what has no record yet.

    Raises:
        StoreError: a record cannot be written; nothing is left running, and earlier records are intact.
        BackendError: a backend cannot be reached.
        EnvironmentLacks: what a backend needs is not installed.
    """
    runner = Runner(trials, store, options or RunOptions(), listener or Silent())
    with runner:
        return runner.run()


class Runner:
    """The state of one run."""

    def __init__(self, trials: Sequence[Trial], store: Store, options: RunOptions, listener: Listener) -> None:
        self._trials = list({t.key: t for t in trials}.values())
        self._store = store
        self._options = options
        self._listener = listener
        self._records: dict[str, Record] = {}
        self._waiting: list[_Job] = []
        self._active: list[_Job] = []
        self._backends: dict[str, Backend] = {}
        self._interrupts = 0
        self._stop = False
        self._executed = 0
        self._spent = 0.0
        self._measuring = locks.of(store.directory / ".measuring.lock")
        self._circumstances: provenance.Circumstances | None = None

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *exception: object) -> None:
        for backend in self._backends.values():
            with contextlib.suppress(BackendError, OSError):
                backend.close()
        for job in (*self._active, *self._waiting):
            job.lock.release()
        self._measuring.release(force=True)

    def run(self) -> Ran:
        """Run to the end, or to the second interrupt."""
        for trial in self._trials:
            self._enlist(trial)
        if self._waiting and self._options.mode != "read-only":
            with storage.writing(self._store.directory):
                self._store.directory.mkdir(parents=True, exist_ok=True)
            with self._interruptible():
                self._loop()
        records = [self._records[t.key] for t in self._trials if t.key in self._records]
        missing = tuple(t for t in self._trials if t.key not in self._records)
        return Ran(records, bool(self._interrupts), self._executed, missing)

    def _enlist(self, trial: Trial) -> None:
        record = self._store.find(trial)
        if record is not None and not self._again(record):
            self._accept(trial, record, "cached")
            return
        directory = self._store.trial_directory(trial)
        self._waiting.append(_Job(trial, self._store.signature(trial), locks.of(directory / ".lock")))

    def _again(self, record: Record) -> bool:
        if record.state in UNFINISHED:
            return self._options.mode != "read-only"
        return self._options.mode == "force" or (self._options.mode == "retry" and record.state is not State.OK)

    def _loop(self) -> None:
        while self._active or (self._waiting and not self._stop):
            started = self._start_what_may()
            ended = self._look_after()
            if not started and not ended:
                self._sleep()

    # Starting

    def _start_what_may(self) -> bool:
        progressed = False
        for job in list(self._waiting):
            if self._stop or self._full():
                break
            if not self._has_room(job.trial) or not self._take(job):
                continue
            self._waiting.remove(job)
            progressed = True
            self._begin(job)
        return progressed

    def _full(self) -> bool:
        """Whether nothing more may start: one measured trial, or all the predictions that go at a time."""
        measured = any(j.trial.target.backend != "emulated" for j in self._active)
        return measured or len(self._active) >= (self._options.jobs or os.cpu_count() or 1)

    def _has_room(self, trial: Trial) -> bool:
        return trial.target.backend == "emulated" or not self._active

    def _take(self, job: _Job) -> bool:
        """Get the locks a trial needs, without waiting."""
        directory = self._store.trial_directory(job.trial)
        with storage.writing(directory):
            directory.mkdir(parents=True, exist_ok=True)
            taken = locks.acquire(job.lock)
            if taken and job.trial.target.backend != "emulated" and not locks.acquire(self._measuring):
                job.lock.release()
                taken = False
        if not taken and not job.waited:
            job.waited = True
            self._tell("waiting", job.trial, None)
        return taken

    def _begin(self, job: _Job) -> None:
        record = self._store.find(job.trial)
        if record is not None and (self._store.signature(job.trial) != job.known or not self._again(record)):
            # Another process finished it in the meantime.
            self._release(job)
            self._accept(job.trial, record, "cached")
            return
        directory = self._store.trial_directory(job.trial)
        if record is None:
            storage.discard_attempts(directory)
        job.started = datetime.now(UTC).isoformat(timespec="microseconds")
        self._active.append(job)
        self._tell("start", job.trial, None)
        self._attempt(job)

    def _attempt(self, job: _Job) -> None:
        try:
            backend = self._backend(job.trial)
            missing = lacks(job.trial, backend.capabilities(job.trial))
            if missing:
                self._finish_unsupported(job, missing)
                return
            with storage.writing(self._store.trial_directory(job.trial)):
                job.directory = storage.new_attempt(self._store.trial_directory(job.trial))
                job.running = backend.start(job.trial, job.directory)
        except EnvironmentLacks as error:
            self._finish_unsupported(job, str(error))

    def _backend(self, trial: Trial) -> Backend:
        name = trial.target.backend
        if name not in self._backends:
            ranks = max(t.ranks for t in self._trials if t.target.backend == name)
            self._backends[name] = open_backend(
                name, grace=self._options.grace, ray_address=self._options.ray_address, most_ranks=ranks
            )
        return self._backends[name]

    # Looking after

    def _look_after(self) -> bool:
        ended = False
        for job in list(self._active):
            outcome = self._poll(job)
            if outcome is not None:
                ended = True
                self._ended(job, outcome)
        return ended

    def _poll(self, job: _Job) -> Outcome | None:
        if job.running is None:
            return None
        try:
            with storage.writing(self._store.trial_directory(job.trial)):
                return job.running.poll()
        except StoreError:
            self._discard(job)
            raise

    def _ended(self, job: _Job, outcome: Outcome) -> None:
        number = len(job.attempts) + 1
        attempt = Attempt(number=number, state=outcome.state, seconds=outcome.seconds, failure=outcome.failure)
        job.attempts = (*job.attempts, attempt)
        job.running = None
        job.lost += outcome.lost
        if self._may_retry(job, outcome):
            self._tell("retry", job.trial, self._record(job, outcome))
            self._attempt(job)
            return
        self._finish(job, outcome)

    def _may_retry(self, job: _Job, outcome: Outcome) -> bool:
        if self._stop:
            return False
        free = min(job.lost, FREE_RETRIES)
        within = len(job.attempts) - free <= job.trial.limits.retries
        return within and (outcome.lost or outcome.state in RETRIED)

    def _finish(self, job: _Job, outcome: Outcome) -> None:
        self._spent += sum(a.seconds for a in job.attempts)
        try:
            self._keep(job, self._record(job, outcome))
        except StoreError:
            self._discard(job)
            raise

    def _finish_unsupported(self, job: _Job, reason: str) -> None:
        from harness.backends.base import Outcome

        failure = Failure(type="unsupported", message=reason)
        self._keep(job, self._record(job, Outcome(State.UNSUPPORTED, 0.0, failure)))

    def _record(self, job: _Job, outcome: Outcome) -> Record:
        if self._circumstances is None:
            self._circumstances = provenance.gather()
        place = self._store.trial_directory(job.trial)
        with storage.writing(place):
            return record_of(
                job.trial,
                outcome,
                started=job.started,
                attempts=job.attempts,
                place=place,
                attempt=job.directory,
                provenance=self._circumstances.stamp(packages=outcome.packages, hardware=outcome.hardware),
            )

    def _keep(self, job: _Job, record: Record) -> None:
        self._store.write(record)
        self._executed += 1
        # Only now may what the replaced record spoke of go.
        storage.discard_attempts(self._store.trial_directory(job.trial), newest=len(job.attempts))
        self._active.remove(job)
        self._release(job)
        self._accept(job.trial, record, "record")
        if self._options.fail_fast and record.state is not State.OK:
            self._stop = True
            self._cancel_all()

    def _accept(self, trial: Trial, record: Record, kind: Literal["record", "cached"]) -> None:
        self._records[trial.key] = record
        self._tell(kind, trial, record)

    def _release(self, job: _Job) -> None:
        job.lock.release()
        if job.trial.target.backend != "emulated":
            self._measuring.release()

    def _discard(self, job: _Job) -> None:
        # Its record cannot be written; a half-kept attempt would only fill a full disk further.
        self._active.remove(job)
        self._release(job)
        storage.discard_attempts(self._store.trial_directory(job.trial))

    # Interrupting and waiting

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[None]:
        import threading

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {s: signal.signal(s, self._interrupted) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _interrupted(self, _number: int, _frame: object) -> None:
        self._interrupts += 1
        self._stop = True
        self._cancel_all()

    def _cancel_all(self) -> None:
        for job in self._active:
            if job.running is not None:
                job.running.cancel()

    def _sleep(self) -> None:
        running = [j.running for j in self._active if j.running is not None]
        longest = LOCKED_PAUSE if self._waiting and not self._active else LONGEST_SLEEP
        pause = min([longest, *(r.pause() for r in running)])
        descriptors = {d for r in running for d in r.waitables() if d >= 0}
        if descriptors:
            with contextlib.suppress(InterruptedError):
                select.select(list(descriptors), [], [], pause)
        else:
            time.sleep(pause)

    def _tell(
        self, kind: Literal["start", "retry", "waiting", "record", "cached"], trial: Trial, record: Record | None
    ) -> None:
        done, total = len(self._records), len(self._trials)
        eta = self._spent / self._executed * (total - done) if self._executed else None
        self._listener.on(Event(kind, trial, record, done, total, eta))
