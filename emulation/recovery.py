"""A job that fails, goes back to its last checkpoint and goes on: when is it done?

Two clocks: *progress* is how far the job has come, *elapsed* is what the clock on the wall says. `carry_out` walks from
failure to failure; what it returns maps every moment of progress to when it was reached for good.

The same walk serves a death that a spec puts at a certain time, and failures at random (`goodput`). For the latter,
with failures that come independently with mean M and may strike while a checkpoint is written and during a restart,
the expected time for one interval tau is ``M e^(R/M) (e^((tau + C)/M) - 1)`` (Daly: A higher order estimate of the
optimum checkpoint interval for restart dumps, Future Generation Computer Systems 22, 2006).
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from emulation import draws
from emulation.faults import Elastic, Restart
from emulation.units import PICOSECONDS_PER_SECOND, picoseconds, render

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from emulation.faults import Mtbf, NodeDeath

MOST_INTERVALS = 1_000_000
"""Checkpoints and failures of a job beyond which it is refused: some seconds of walking."""
_DRAWN_AT_ONCE = 64


class Hopeless(ValueError):
    """A job that fails faster than it gets on, or has more checkpoints than can be walked."""


@dataclass(frozen=True)
class Setback:
    """A failure, and what it does; times in picoseconds."""

    at: int
    """Elapsed."""
    pause: int
    """Until work goes on: detection, and restart or reconfiguration."""
    slower: float = 0.0
    """How many times longer work takes from then on, where nothing is lost; 0: back to the last checkpoint."""


@dataclass
class Course:
    """How a job went. From progress `since[i]` on, elapsed is `reached[i]` and `slope[i]` for each unit of progress.

    Times are picoseconds.
    """

    since: list[int] = field(default_factory=lambda: [0])
    reached: list[int] = field(default_factory=lambda: [0])
    slope: list[float] = field(default_factory=lambda: [1.0])
    elapsed: int = 0
    """Until all work was done."""
    lost: int = 0
    """Of it, what went by without lasting progress because of failures."""
    failures: int = 0

    def started(self, progress: int) -> int:
        """When that began which began at this progress, in the execution that counts."""
        return self._at(bisect_right(self.since, progress) - 1, progress)

    def ended(self, progress: int) -> int:
        """When that ended which ended at this progress, in the execution that counts."""
        return self._at(max(0, bisect_left(self.since, progress) - 1), progress)

    def _at(self, place: int, progress: int) -> int:
        # Whole numbers stay whole where nothing is slower.
        passed, slope = progress - self.since[place], self.slope[place]
        return self.reached[place] + (passed if slope == 1 else round(passed * slope))

    def _go_on(self, progress: int, elapsed: int, slope: float) -> None:
        """Whatever was done beyond `progress` before does not count any more."""
        while self.since and self.since[-1] >= progress:
            for part in (self.since, self.reached, self.slope):
                part.pop()
        self.since.append(progress)
        self.reached.append(elapsed)
        self.slope.append(slope)


def carry_out(work: int, setbacks: Iterable[Setback], interval: int = 0, checkpoint: int = 0) -> Course:
    """Walk through a job.

    Args:
        work: picoseconds of progress to be made.
        setbacks: failures in the order of time; there may be infinitely many.
        interval: picoseconds of progress between checkpoints; 0 for none.
        checkpoint: picoseconds to write one, in which no progress is made; no failure leaves half of one.

    Raises:
        Hopeless: after `MOST_INTERVALS` of them.
    """
    course = Course()
    coming = iter(setbacks)
    failure = next(coming, None)
    saved = now = 0
    progress, slope = 0, 1.0
    for _ in range(MOST_INTERVALS):
        goal = min(work, saved + interval) if interval else work
        there = now + round((goal - progress) * slope)
        done = there if goal == work else there + checkpoint
        if failure is None or failure.at >= done:
            progress, now = goal, done
            if goal == work:
                course.elapsed = now
                return course
            saved = goal
            course._go_on(progress, now, slope)
            continue
        course.failures += 1
        came = progress + round((failure.at - now) / slope) if failure.at > now else progress
        if failure.slower:
            progress, slope = min(came, goal), slope * failure.slower
            course.lost += failure.pause
        else:
            # What was done since the checkpoint, and the pause.
            course.lost += max(now, failure.at) - now + failure.pause
            progress = saved
        now = max(now, failure.at) + failure.pause
        course._go_on(progress, now, slope)
        failure = next(coming, None)
        while failure is not None and failure.at < now:
            # It struck during the pause, which begins anew.
            course.failures += 1
            course.lost += failure.at + failure.pause - now
            now = failure.at + failure.pause
            course.reached[-1] = now
            failure = next(coming, None)
    raise Hopeless(f"a job of {MOST_INTERVALS:,} checkpoints and failures is too long; lengthen the interval")


def after_deaths(work: int, deaths: Sequence[NodeDeath], hosts: int) -> Course:
    """How a job of `work` picoseconds on `hosts` hosts goes on after deaths that have a policy for it."""
    setbacks = []
    left = hosts
    interval = checkpoint = 0
    for death in deaths:
        at, seen = picoseconds(death.at), picoseconds(death.detection)
        if isinstance(death.policy, Restart):
            interval = picoseconds(death.policy.checkpoint_interval)
            checkpoint = picoseconds(death.policy.checkpoint_cost)
            setbacks.append(Setback(at, seen + picoseconds(death.policy.restart_cost)))
        elif isinstance(death.policy, Elastic):
            remaining = min(left, death.policy.remaining)
            setbacks.append(Setback(at, seen + picoseconds(death.policy.reconfiguration), left / remaining))
            left = remaining
    return carry_out(work, setbacks, interval, checkpoint)


@dataclass(frozen=True)
class Goodput:
    """What part of a long job's time was work that lasted; times in seconds."""

    job: float
    elapsed: float
    failures: int
    interval: float
    """Between checkpoints."""
    mtbf: float
    """Of the whole cluster."""

    @property
    def value(self) -> float:
        """Work done for each unit of time, of one."""
        return self.job / self.elapsed


def goodput(fault: Mtbf, hosts: Sequence[str], devices: Sequence[str], seed: int | str = 0) -> Goodput:
    """Simulate a job whose components fail at random, each with numbers of its own.

    Raises:
        Hopeless: failures come so fast that it would not end.
    """
    means = {host: fault.host for host in hosts if fault.host} | {d: fault.device for d in devices if fault.device}
    if not means:
        raise Hopeless("no component of this cluster can fail: it has no accelerators, and hosts have no MTBF")
    mtbf = 1 / sum(1 / mean for mean in means.values())
    cost, pause = fault.checkpoint_cost, fault.restart_cost
    chosen = fault.checkpoint_interval
    interval = {"young": young, "optimal": daly}[chosen](cost, mtbf) if isinstance(chosen, str) else chosen
    attempts = fault.job / interval * math.exp(min(700.0, (interval + cost + pause) / mtbf))
    if attempts > MOST_INTERVALS:
        raise Hopeless(
            f"with a failure every {render(mtbf, 's')} this job would take about {attempts:.1g} attempts at intervals "
            f"of {render(interval, 's')}; shorten the interval or the job"
        )
    setbacks = (Setback(picoseconds(at), picoseconds(pause)) for at in heapq.merge(*_failures(means, seed)))
    course = carry_out(picoseconds(fault.job), setbacks, picoseconds(interval), picoseconds(cost))
    return Goodput(fault.job, course.elapsed / PICOSECONDS_PER_SECOND, course.failures, interval, mtbf)


def young(cost: float, mtbf: float) -> float:
    """The checkpoint interval that loses least, to first order: sqrt(2 C M) (Young, CACM 17, 1974)."""
    return math.sqrt(2 * cost * mtbf)


def daly(cost: float, mtbf: float) -> float:
    """The same to a higher order (Daly 2006); the MTBF itself where a checkpoint takes more than two of them."""
    if cost >= 2 * mtbf:
        return mtbf
    ratio = cost / (2 * mtbf)
    return math.sqrt(2 * cost * mtbf) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - cost


def _failures(means: dict[str, float], seed: int | str) -> list[Iterator[float]]:
    def times(name: str, mean: float) -> Iterator[float]:
        now, drawn = 0.0, 0
        while True:
            for wait in draws.exponential(seed, name, "failure", mean, _DRAWN_AT_ONCE, drawn):
                now += float(wait)
                yield now
            drawn += _DRAWN_AT_ONCE

    return [times(name, mean) for name, mean in means.items()]
