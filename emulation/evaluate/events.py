"""The event-driven evaluator: a SimPy run of a workload graph on a topology.

A node starts when everything before it is done (edges and stream order), waits its fixed time, then moves its bytes as
a fluid, if it has any, and is done. Time is an integer number of picoseconds, and at one instant things happen in this
order: whatever ends, then whatever starts because of it, and last the computation of new rates, once.

SimPy orders events by time, priority and order of scheduling; everything is scheduled while walking lists in node
order, so two runs are equal to the picosecond whatever the hash seed. Nothing waits in a generator: callbacks on
events cost about half as much.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from emulation.evaluate.fluid import Activity, Fluids
from emulation.graph import WorkloadError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from emulation.cost import Cost
    from emulation.evaluate.outcome import Outcome
    from emulation.evaluate.tasks import Tasks

EVENT_BUDGET = 5_000_000
AFTER_EVERYTHING = 2
"""SimPy priority below NORMAL (1): runs when an instant has nothing else left."""


class TooManyEvents(WorkloadError):
    """A workload that would take too long to evaluate."""


class Run:
    """One evaluation; after `go`, `start` and `end` hold every node's times in picoseconds.

    Raises:
        TooManyEvents: it would take too long.
    """

    def __init__(self, tasks: Tasks) -> None:
        check_budget(estimate(tasks.costs))
        self.tasks = tasks
        self.events = 0
        count = len(tasks.workload.nodes)
        self.start = [-1] * count
        self.end = [-1] * count
        self.fluids = Fluids(tasks.links, tasks.describe)
        self.outcome: Outcome | None = None
        """How it ended, where it did not simply complete."""
        self.unfinished: frozenset[int] = frozenset()
        """Nodes that were cut off."""
        self._waiting = list(tasks.waiting)

    @property
    def busy(self) -> Mapping[int, int]:
        """Link -> picoseconds in which anything moved over it."""
        return self.fluids.busy

    def go(self) -> None:
        """Evaluate to the end.

        Raises:
            Deadlock: some nodes could never start; the message names them.
            Stalled: a link without capacity holds an activity up.
        """
        import simpy

        self._env = simpy.Environment(initial_time=0)
        self._settling = False
        self._wake = 0
        self._prepare()
        for index, waiting in enumerate(self._waiting):
            if not waiting:
                self._begin(index)
        self._env.run()
        self.tasks.check_done(self.end)

    def _prepare(self) -> None:
        """Schedule what happens whatever the workload does: nothing, on a cluster without faults."""

    @property
    def _patient(self) -> bool:
        """Whether links will change yet, so that what stands still may move again."""
        return False

    def _begin(self, index: int) -> None:
        cost = self.tasks.costs[index]
        for node in self.tasks.meetings[index].nodes:
            self.start[node] = self._env.now
        self._after(cost.fixed, self._flow if cost.work else self._finish, index)

    def _flow(self, event: Any) -> None:
        index = event.value
        cost = self.tasks.costs[index]
        self.fluids.start(index, Activity(cost.weights, cost.cap, cost.work), self._env.now)
        self._settle_later()

    def _finish(self, event: Any) -> None:
        self._done(event.value)

    def _done(self, index: int) -> None:
        for node in self.tasks.meetings[index].nodes:
            self.end[node] = self._env.now
        for following in self.tasks.later[index]:
            self._waiting[following] -= 1
            if not self._waiting[following]:
                self._begin(following)

    def _settle_later(self) -> None:
        if self._settling:
            return
        self._settling = True
        event = self._env.event()
        event.callbacks.append(self._settle)
        # `succeed` would schedule it at NORMAL priority, before what this instant still brings.
        event._ok, event._value = True, None
        self._env.schedule(event, priority=AFTER_EVERYTHING)

    def _settle(self, _: Any) -> None:
        self.events += 1
        self._settling = False
        now = self._env.now
        self.fluids.settle(now, patient=self._patient)
        finish = self.fluids.next_finish()
        self._wake += 1
        if finish is not None:
            self._after(finish - now, self._complete, self._wake)

    def _complete(self, event: Any) -> None:
        if event.value != self._wake:
            return
        for index in self.fluids.finished(self._env.now):
            self._done(index)
        self._settle_later()

    def _after(self, delay: int, callback: Any, value: Any) -> None:
        self.events += 1
        self._env.timeout(delay, value).callbacks.append(callback)


def estimate(costs: Sequence[Cost]) -> int:
    """Upper estimate of the events a run takes: one for a fixed time, three more for a fluid."""
    return sum(4 if cost.work else 1 for cost in costs)


def check_budget(events: int) -> None:
    """Refuse what would run for long.

    Raises:
        TooManyEvents: with the number and what reduces it.
    """
    if events > EVENT_BUDGET:
        raise TooManyEvents(
            f"this workload would take about {events:,} events, more than {EVENT_BUDGET:,}; join consecutive kernels "
            "of a stream into one compute node, or emulate fewer micro-batches or ranks"
        )
