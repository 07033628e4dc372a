"""A pool of processes on this machine that programs are run on for real, over gloo.

Starting a process that imports torch takes seconds, and joining a group some more: a pool does that once for many
programs, of as many ranks as it has or fewer.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import time
import traceback
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from engines.superscaler.runtime.distributed import Groups, run
from engines.superscaler.runtime.interpret import outcome
from engines.superscaler.runtime.optimizer import Optimizer
from harness.api import HarnessError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from multiprocessing.connection import Connection
    from types import TracebackType
    from typing import Self

    from torch import Tensor, nn

    from engines.superscaler.program import Program
    from engines.superscaler.runtime.interpret import Held
    from engines.superscaler.runtime.outcome import Outcome


@dataclass(frozen=True)
class _Job:
    program: Program
    module: nn.Module
    batches: Sequence[Sequence[tuple[Tensor, ...]]]
    optimizer: Optimizer
    dtype: torch.dtype
    seed: int


class Pool:
    """Processes in one gloo group; a context manager."""

    def __init__(self, size: int, timeout: float = 60.0) -> None:
        """Start them.

        Args:
            size: How many; the most ranks that a program may have.
            timeout: Seconds that one program may take, the start of the pool included in the first.
        """
        self.size, self._timeout = size, timeout
        # The ranks meet at a store that lives here.
        self._store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        start = multiprocessing.get_context("forkserver")
        # The optimizers import the second on their first step: once is enough.
        start.set_forkserver_preload([__name__, "torch._dynamo", "engines.superscaler.projection"])
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(size):
            ours, theirs = start.Pipe()
            process = start.Process(target=_work, args=(theirs, rank, size, self._store.port), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the processes."""
        for pipe in self._pipes:
            with contextlib.suppress(OSError):
                pipe.send_bytes(pickle.dumps(None))
            pipe.close()
        for process in self._processes:
            process.join(5.0)
            if process.is_alive():
                process.kill()
                process.join()
        self._pipes, self._processes = [], []

    def run(
        self,
        program: Program,
        module: nn.Module,
        batches: Sequence[Sequence[tuple[Tensor, ...]]],
        *,
        optimizer: Optimizer | None = None,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> Outcome:
        """Train for some steps; `interpret.interpret` says what is what.

        Raises:
            HarnessError: the pool has too few processes, a rank failed, or it took too long. After either of the
                latter two the pool is closed: other ranks may wait for the one that failed.
        """
        ranks = program.plan.devices
        if not self._pipes:
            raise HarnessError("this pool of processes is closed")
        if ranks != tuple(range(len(ranks))) or len(ranks) > self.size:
            raise HarnessError(f"a pool of {self.size} processes cannot be devices {ranks}")
        message = pickle.dumps(_Job(program, module, batches, optimizer or Optimizer(), dtype, seed))
        # Those that have no part in it help to make its groups.
        for pipe in self._pipes:
            pipe.send_bytes(message)
        held: dict[int, Held | None] = {}
        deadline = time.monotonic() + self._timeout
        while len(held) < self.size:
            awaited = {pipe: rank for rank, pipe in enumerate(self._pipes) if rank not in held}
            ready = wait(list(awaited), max(0.0, deadline - time.monotonic()))
            if not ready:
                self._fail(f"ranks {sorted(awaited.values())} did not finish within {self._timeout:g} s")
            for pipe in ready:
                rank = awaited[pipe]
                try:
                    answer = pickle.loads(pipe.recv_bytes())
                except EOFError:
                    self._fail(f"rank {rank} ended")
                if isinstance(answer, str):
                    self._fail(f"rank {rank} failed:\n{answer}")
                held[rank] = answer
        return outcome(program, {rank: held[rank] for rank in ranks})

    def _fail(self, why: str) -> None:
        for process in self._processes:
            process.kill()
        self.close()
        raise HarnessError(why)


def _work(pipe: Connection, rank: int, size: int, port: int) -> None:
    """What a process of the pool does."""
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    store = dist.TCPStore("127.0.0.1", port)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    groups = Groups()
    while True:
        try:
            job = pickle.loads(pipe.recv_bytes())
        except EOFError:
            break
        if job is None:
            break
        try:
            answer = _run(job, rank, groups)
        except Exception:
            answer = traceback.format_exc()
        pipe.send_bytes(pickle.dumps(answer))
    dist.destroy_process_group()


def _run(job: _Job, rank: int, groups: Groups) -> Held | None:
    groups.prepare(job.program)
    if rank not in job.program.plan.devices:
        return None
    return run(
        job.program,
        job.module,
        job.batches,
        groups=groups,
        optimizer=job.optimizer,
        dtype=job.dtype,
        seed=job.seed,
    )
