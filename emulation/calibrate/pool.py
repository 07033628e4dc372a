"""Worker processes that probes run in: one thread each, started once, always ended.

A worker is what a rank of a local job is: a process whose libraries use one thread. Its allocator keeps freed memory
(glibc's limits are raised before it starts), because a process that gives its pages back and faults them in again each
step measures the kernel and not the operator; a job that is to be predicted from the profile must do the same.

Tasks are plain functions ``task(worker, **arguments)`` in importable modules. All the chosen workers run the task at
once; they can meet at a barrier, and are one gloo group where PyTorch is there.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
import traceback
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess
    from multiprocessing.synchronize import Barrier

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "GLOO_SOCKET_IFNAME": "lo",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
    "MALLOC_ARENA_MAX": "1",
}
"""What a worker is started with, and what a job has to run with for its figures to hold.

The last three are what `harness.api.retain_freed_memory` asks of the allocator.
"""
TIMEOUT = 120.0
"""Seconds after which a probe that has not answered is given up."""


class ProbeError(Exception):
    """A probe failed, or did not end in time."""


@dataclass
class Worker:
    """What a task sees of the process it runs in."""

    rank: int
    count: int
    barriers: list[Barrier]
    """By number of processes less one."""
    rendezvous: str
    """File through which the gloo group finds itself."""
    kept: dict[str, Any] = field(default_factory=dict)
    """What tasks keep for later tasks: process kept, servers, tensors."""

    def meet(self, ranks: int) -> None:
        """Wait until all of the first `ranks` workers are here."""
        if ranks > 1:
            self.barriers[ranks - 1].wait(TIMEOUT)


class Pool:
    """`count` workers; a context manager that leaves no process behind.

    Raises:
        ProbeError: from `run`, where a worker failed, died, or was not done in time.
    """

    def __init__(self, count: int, folder: str, environment: dict[str, str] | None = None) -> None:
        self.count = count
        self._environment = ENVIRONMENT | (environment or {})
        self._folder = folder
        self._processes: list[BaseProcess] = []
        self._pipes: list[Connection] = []

    def __enter__(self) -> Pool:
        context = multiprocessing.get_context("spawn")
        # Kept, as a semaphore nobody refers to is taken away before the workers have opened it.
        self._barriers = barriers = [context.Barrier(count + 1) for count in range(self.count)]
        with _environment(self._environment):
            for rank in range(self.count):
                here, there = context.Pipe()
                worker = Worker(rank, self.count, barriers, f"{self._folder}/rendezvous")
                process = context.Process(target=_serve, args=(worker, there), daemon=True)
                process.start()
                there.close()
                self._processes.append(process)
                self._pipes.append(here)
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in self._pipes:
            # The end of the pipe is what tells a worker to leave.
            pipe.close()
        for process in self._processes:
            process.join(2)
            if process.is_alive():
                process.kill()
                process.join()

    def run(
        self, task: Callable[..., Any], workers: int = 1, *, timeout: float = TIMEOUT, **arguments: Any
    ) -> list[Any]:
        """Run a task on the first `workers` workers at once.

        Returns:
            What it returned, by rank.

        Raises:
            ProbeError: it failed, or did not end in time; the pool is of no use afterwards.
        """
        for rank in range(workers):
            self._send(rank, task, arguments)
        end = time.monotonic() + timeout
        return [self._receive(rank, end, task.__name__) for rank in range(workers)]

    def _send(self, rank: int, task: Callable[..., Any], arguments: dict[str, Any]) -> None:
        try:
            self._pipes[rank].send((task, arguments))
        except OSError as error:
            raise ProbeError(f"worker {rank} has gone: {error}") from error

    def _receive(self, rank: int, end: float, name: str) -> Any:
        if not self._pipes[rank].poll(max(0.0, end - time.monotonic())):
            raise ProbeError(f"{name}: worker {rank} was not done in time")
        try:
            failed, result = self._pipes[rank].recv()
        except EOFError:
            self._processes[rank].join(2)
            code = self._processes[rank].exitcode
            raise ProbeError(f"{name}: worker {rank} died with exit code {code}") from None
        if failed:
            raise ProbeError(f"{name}: worker {rank} failed:\n{result}")
        return result


def _serve(worker: Worker, pipe: Connection) -> None:
    """Run tasks until the other end of the pipe is closed."""
    # Ctrl-C goes to the whole process group; the parent ends its workers itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        try:
            task, arguments = pipe.recv()
        except EOFError:
            return
        try:
            answer = (False, task(worker, **arguments))
        except Exception:
            answer = (True, traceback.format_exc())
        with contextlib.suppress(BrokenPipeError):
            pipe.send(answer)


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """These variables set, for processes started inside."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
