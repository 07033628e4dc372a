"""What an engine is handed: its rank and board for a real run, the emulated cluster for a prediction.

Both keep a timeline. Stretches are noted in memory while the clock runs and written when the trial ends, also when
it ends with an exception.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import measure
from harness.api import Repeat
from harness.errors import Aborted
from harness.execution.rendezvous import FileRendezvous

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from emulation.evaluate import Result
    from emulation.graph import Workload
    from emulation.profile import Profile
    from emulation.program import Program
    from harness.execution.assignment import Assignment

SPANS = "spans.json"
MOST_SPANS = 100_000
"""Later ones are dropped: a timeline of more cannot be looked at, and must not grow without bound."""


class RankContext:
    """`api.RunContext` of one rank."""

    def __init__(self, assignment: Assignment, profile: Profile) -> None:
        self.rank = assignment.rank
        self.world_size = assignment.world_size
        self.address = assignment.address
        self.repeat = _repeat(assignment)
        self.profile = profile
        self.scratch = Path(assignment.scratch)
        self.artifacts = Path(assignment.artifacts)
        self.rendezvous = FileRendezvous(
            Path(assignment.rendezvous), rank=assignment.rank, world_size=assignment.world_size
        )
        self.spans: list[dict[str, Any]] = []
        # perf_counter is what is measured with; its offset to the wall clock lays ranks side by side.
        self._epoch = time.time() - time.perf_counter()
        self._joined = False

    def sample(
        self, action: Callable[[], object], *, warmup: int | None = None, runs: int | None = None
    ) -> list[float]:
        """Wall-clock seconds of each repetition of `action`, after the warm-up (defaults: `repeat`)."""
        taken = measure.sample(
            action,
            warmup=self.repeat.warmup if warmup is None else warmup,
            runs=self.repeat.runs if runs is None else runs,
        )
        for number, (begin, seconds) in enumerate(taken):
            self._note("sample", "samples", begin, seconds, {"number": number})
        return [seconds for _, seconds in taken]

    @contextmanager
    def span(self, name: str, stream: str = "main", **args: Any) -> Iterator[None]:
        """Put a stretch of time on the trial's timeline."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._note(name, stream, begin, time.perf_counter() - begin, args)

    def init_process_group(self, backend: str = "gloo") -> None:
        """Join the trial's ranks in a `torch.distributed` process group."""
        from datetime import timedelta

        import torch.distributed as dist

        key = "torch.distributed store"
        if self.address == "127.0.0.1":
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
            os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
        timeout = timedelta(seconds=60)
        if self.rank == 0:
            # Port 0: the system picks one that is free, so that trials never collide on a number.
            store = dist.TCPStore(
                self.address, 0, self.world_size, is_master=True, wait_for_workers=False, timeout=timeout
            )
            self.rendezvous.set(key, f"{self.address} {store.port}")
        else:
            host, port = self.rendezvous.get(key).split()
            store = dist.TCPStore(host, int(port), self.world_size, is_master=False, timeout=timeout)
        dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.world_size)
        self._joined = True

    def close(self, directory: Path) -> None:
        """Write the timeline into `directory`."""
        if self.spans:
            (directory / SPANS).write_text(json.dumps(self.spans, default=str), "utf-8")

    def leave(self) -> None:
        """Leave the process group after a run that ended well; after a failure the others may hang in it."""
        if self._joined:
            import torch.distributed as dist

            if dist.is_initialized():
                dist.destroy_process_group()

    def _note(self, name: str, stream: str, begin: float, seconds: float, args: dict[str, Any]) -> None:
        if len(self.spans) < MOST_SPANS:
            span = {"name": name, "stream": stream, "start": self._epoch + begin, "seconds": seconds, "args": args}
            self.spans.append(span)


class PredictionContext:
    """`api.EmulationContext`: evaluates workloads and keeps their timelines."""

    def __init__(self, assignment: Assignment, profile: Profile) -> None:
        self.profile = profile
        self.repeat = _repeat(assignment)
        self.artifacts = Path(assignment.artifacts)
        from emulation.faults import FAULTS

        self.faults = FAULTS.validate_json(json.dumps(assignment.trial.faults))
        self.results: list[Result] = []
        self._names: set[str] = set()

    def simulate(self, workload: Workload | Program, *, name: str = "") -> Result:
        """Evaluate a workload graph on the profile and keep its timeline under `name`.

        Raises:
            Aborted: a fault of the spec kept it from its end.
        """
        from emulation.evaluate import simulate
        from emulation.io import chrome_trace
        from emulation.units import render

        result = simulate(workload, self.profile, seed=self.repeat.seed, faults=self.faults)
        self.results.append(result)
        if self.faults and not result.outcome.ended:
            ended = result.outcome
            raise Aborted(
                f"{ended.state} at {render(ended.at, 's')} of {workload.name or 'the workload'}: {ended.reason}"
            )
        path = self.artifacts / f"{self._file_name(name)}.trace.json"
        chrome_trace.write(path, result.timeline(), levels=result.levels(), names=result.names())
        return result

    def stamp(self) -> dict[str, Any]:
        """What the values rest on, as a `records.EmulationStamp`."""
        from emulation import MODEL_VERSION
        from emulation.figures import weakest

        if self.faults and not self.results:
            raise Aborted(
                "the spec has faults, and this engine predicts without an emulated run that they could change"
            )
        outcomes = [result.outcome for result in self.results]
        goodput = self.results[0].goodput if self.results else None
        return {
            "model_version": MODEL_VERSION,
            "profile": self.profile.name,
            "profile_digest": self.profile.digest,
            "grade": weakest([r.grade for r in self.results] or [self.profile.grade]),
            "events": sum(r.events for r in self.results),
            "outcome": next((o.state for o in outcomes if o.state != "completed"), "completed"),
            "lost": sum(o.lost for o in outcomes),
            "goodput": goodput.value if goodput else None,
        }

    def _file_name(self, name: str) -> str:
        stem = "".join(c if c.isalnum() or c in "._-" else "-" for c in name) or "timeline"
        number = 2
        unique = stem
        while unique in self._names:
            unique, number = f"{stem}-{number}", number + 1
        self._names.add(unique)
        return unique


def _repeat(assignment: Assignment) -> Repeat:
    wanted = assignment.trial.repeat
    return Repeat(warmup=wanted.warmup, runs=wanted.runs, seed=wanted.seed)
