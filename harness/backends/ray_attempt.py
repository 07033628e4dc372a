"""One attempt at a trial on a Ray cluster, seen from the driver."""

from __future__ import annotations

import contextlib
import time
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.backends.base import Outcome
from harness.backends.group import write_timeline
from harness.backends.outcome import gather
from harness.backends.watchman import Board, Report, Watchman
from harness.errors import StoreError
from harness.records import Failure, State

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.trial import Trial

POLL = 0.02
CLEAN_SECONDS = 10.0
SETTLE_SECONDS = 60.0
"""How long Ray is given to notice that a node is gone; it takes about fifteen seconds."""


@dataclass(frozen=True)
class _Loss:
    """A watchman that no longer answers."""

    failure: Failure
    nodes: frozenset[str]
    """Where the attempt ran."""
    at: float
    seconds: float


class RayAttempt:
    """`base.Running` on a cluster: waits for room, then for every rank."""

    def __init__(self, trial: Trial, directory: Path, *, dump: dict[str, Any], grace: float) -> None:
        self._trial = trial
        self._directory = directory
        self._dump = dump
        self._grace = grace
        self._scratch = f"harness-{uuid.uuid4().hex[:12]}"
        self._began = time.monotonic()
        self._group = _placement(trial)
        self._board: Any = None
        self._actors: list[Any] = []
        self._pending: dict[Any, int] = {}
        self._reports: dict[int, Report] = {}
        self._first: int | None = None
        self._cancelled = 0
        self._nodes: list[Any] = []
        self._loss: _Loss | None = None

    def poll(self) -> Outcome | None:
        """Start the ranks once there is room; collect those that have ended."""
        if self._loss is not None:
            return self._settle(self._loss)
        if not self._actors:
            return self._place()
        try:
            self._collect()
        except _lost_errors() as error:
            self._lose(error)
            return None
        if self._pending:
            return None
        return self._outcome()

    def pause(self) -> float:
        """Ray has nothing to wait on together with files; it is asked often."""
        return POLL

    def waitables(self) -> Sequence[int]:
        """None."""
        return ()

    def cancel(self) -> None:
        """TERM on every node, KILL of the watchmen when asked again."""
        import ray

        self._cancelled += 1
        for actor in self._actors:
            if self._cancelled == 1:
                actor.stop.remote("cancel")
            else:
                ray.kill(actor)

    def _place(self) -> Outcome | None:
        import ray

        if self._cancelled:
            return self._end(State.CANCELLED, "cancelled while it waited for room on the cluster")
        if self._group is not None and not self._group.wait(timeout_seconds=0):
            limit = self._trial.limits.timeout
            if time.monotonic() - self._began > limit:
                return self._end(State.TIMEOUT, f"the cluster had no room for it within {limit:g} s (limits.timeout)")
            return None
        self._began = time.monotonic()
        if self._trial.ranks > 1:
            self._board = ray.remote(num_cpus=0)(Board).remote()
        for rank in range(self._trial.ranks):
            actor = self._watchman(rank)
            self._actors.append(actor)
            self._nodes.append(actor.node.remote())
            self._pending[actor.carry_out.remote(self._dump, rank, self._scratch, self._grace)] = rank
        return None

    def _watchman(self, rank: int) -> Any:
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        options: dict[str, Any] = {"num_cpus": 1, "num_gpus": _gpus_per_rank(self._trial), "max_concurrency": 2}
        if self._group is not None:
            options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(
                self._group, placement_group_bundle_index=rank
            )
        return ray.remote(Watchman).options(**options).remote(self._board)

    def _collect(self) -> None:
        import ray

        ready, _ = ray.wait(list(self._pending), num_returns=len(self._pending), timeout=0)
        for reference in ready:
            report: Report = ray.get(reference)
            rank = self._pending.pop(reference)
            self._reports[rank] = report
            if self._first is None and not report.remains.done:
                self._first = rank
                for other in self._pending.values():
                    self._actors[other].stop.remote("peer")

    def _outcome(self) -> Outcome:
        reports = [self._reports[rank] for rank in sorted(self._reports)]
        for report in reports:
            self._bring_home(report)
        write_timeline(self._directory)
        self._release()
        problem = next((r.problem for r in reports if r.problem), "")
        if problem:
            raise StoreError(f"on a node of the Ray cluster: {problem}")
        first = self._first or 0
        outcome = gather(
            [r.remains for r in reports],
            stopped=self._reports[first].stopped,
            first=first,
            seconds=time.monotonic() - self._began,
            package=self._trial.package,
        )
        return replace(outcome, hardware=reports[0].hardware)

    def _bring_home(self, report: Report) -> None:
        for name, content in report.files.items():
            path = self._directory / name
            if Path(name).name == "trace.json" and Path(name).parent.name == "artifacts":
                # One rank's share; the whole is put together from all.
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    def _lose(self, error: Exception) -> None:
        now = time.monotonic()
        first = (str(error).splitlines() or [""])[0]
        failure = Failure(type=type(error).__name__, message=f"a node of the cluster was lost: {first}")
        self._loss = _Loss(failure, _known(self._nodes), at=now, seconds=now - self._began)
        self._release()

    def _settle(self, loss: _Loss) -> Outcome | None:
        """Wait until Ray has noticed that the node is gone: before, it would place the next attempt there."""
        import ray

        if self._cancelled:
            return Outcome(State.CANCELLED, loss.seconds, Failure(type="cancelled", message="cancelled by the user"))
        alive = {n["NodeID"] for n in ray.nodes() if n["Alive"]}
        if loss.nodes <= alive and time.monotonic() - loss.at < SETTLE_SECONDS:
            return None
        return Outcome(State.CRASHED, loss.seconds, loss.failure, lost=True)

    def _end(self, state: State, message: str) -> Outcome:
        self._release()
        return Outcome(state, time.monotonic() - self._began, Failure(type=state.value, message=message))

    def _release(self) -> None:
        """Give the room back."""
        import ray

        cleaning = [actor.clean.remote(self._scratch) for actor in self._actors]
        if cleaning:
            ray.wait(cleaning, num_returns=len(cleaning), timeout=CLEAN_SECONDS)
        for actor in (*self._actors, *([self._board] if self._board is not None else [])):
            ray.kill(actor)
        if self._group is not None:
            from ray.util import remove_placement_group

            remove_placement_group(self._group)


def _known(asked: list[Any]) -> frozenset[str]:
    """The nodes among those asked for that were told before the loss."""
    import ray

    told, _ = ray.wait(asked, num_returns=len(asked), timeout=0)
    found = set()
    for reference in told:
        with contextlib.suppress(*_lost_errors()):
            found.add(ray.get(reference))
    return frozenset(found)


def _lost_errors() -> tuple[type[Exception], ...]:
    from ray import exceptions

    return (exceptions.RayActorError, exceptions.NodeDiedError, exceptions.ObjectLostError)


def _gpus_per_rank(trial: Trial) -> float:
    each = trial.needs.gpus * trial.needs.hosts / trial.ranks
    # Ray deals out parts of one GPU, or whole ones.
    return each if each < 1 else int(each)


def _placement(trial: Trial) -> Any:
    """Room for all ranks at once, or None for one that needs no more than a place anywhere."""
    if trial.ranks == 1:
        return None
    from ray.util import placement_group

    bundle: dict[str, float] = {"CPU": 1}
    if gpus := _gpus_per_rank(trial):
        bundle["GPU"] = gpus
    spread = trial.needs.hosts > 1
    strict = spread and trial.needs.hosts >= trial.ranks
    strategy = "STRICT_SPREAD" if strict else "SPREAD" if spread else "PACK"
    return placement_group([bundle] * trial.ranks, strategy=strategy)
