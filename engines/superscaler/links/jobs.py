"""What the ranks of a network are asked to time."""

from __future__ import annotations

import json
import pickle
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from engines.superscaler.links.network import INTERFACE, Network
from harness.api import HarnessError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from engines.superscaler.links.network import Shape
    from engines.superscaler.program import Program

SOURCES = str(Path(__file__).resolve().parents[3])


@dataclass(frozen=True)
class Single:
    """One collective (or message) with nothing else on the network."""

    kind: Literal["all-reduce", "reduce-scatter", "all-gather", "all-to-all", "send"]
    ranks: tuple[int, ...]
    """(source, target) of `send`."""
    nbytes: int
    """Of the whole buffer of one rank: what an all-gather ends with, what the others start from."""
    repetitions: int = 9


@dataclass(frozen=True)
class Step:
    """A step of a plan."""

    program: Program
    seconds: tuple[tuple[tuple[int, str], float], ...]
    """(run, pass) -> what a rank takes to compute it."""
    repetitions: int = 9


Job = Single | Step


def measure(ranks: int, shape: Shape, jobs: Sequence[Job], *, limit: float = 600.0) -> list[float]:
    """Seconds of every job, on a network made for them: the first quartile of its repetitions.

    Other processes on the machine only ever add to a measurement; the quartile leaves out the times they did.

    Args:
        ranks: processes, each in a namespace.
        shape: of their links.
        jobs: in order, one at a time.
        limit: seconds after which everything is ended.

    Raises:
        HarnessError: no network can be made here, a rank failed, or the time limit was reached.
    """
    with tempfile.TemporaryDirectory(prefix="links-") as made, Network(ranks, shape) as network:
        folder = Path(made)
        (folder / "jobs.pickle").write_bytes(pickle.dumps(list(jobs)))
        env: Mapping[str, str] = {"GLOO_SOCKET_IFNAME": INTERFACE, "OMP_NUM_THREADS": "1", "PYTHONPATH": SOURCES}
        worker = [sys.executable, "-m", "engines.superscaler.links.worker"]
        started = [network.start(rank, [*worker, str(rank), str(ranks), made], env) for rank in range(ranks)]
        end = time.monotonic() + limit
        while any(process.poll() is None for process in started):
            failed = [rank for rank, process in enumerate(started) if process.poll() not in (None, 0)]
            if failed or time.monotonic() > end:
                raise HarnessError(f"rank {failed[0]} failed" if failed else f"not done in {limit:g} s")
            time.sleep(0.05)
        if any(process.returncode for process in started):
            raise HarnessError("a rank failed")
        taken = json.loads((folder / "seconds.json").read_text())
    short = next((job for job, each in zip(jobs, taken, strict=True) if not each), None)
    if short is not None:
        raise HarnessError("the machine is too busy: ranks did not start together in any repetition")
    return [sorted(each)[len(each) // 4] for each in taken]
