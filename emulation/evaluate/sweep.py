"""The sweep: when everything happens, in one pass over the graph, where nobody has to share.

A task starts when the last task before it ends, and takes as long as it would on idle links: start = max(end of those
before), end = start + duration, in topological order (a max-plus sweep). Without contention nothing that happens later
changes what happened before, so no event loop is needed.

Whether it was right to assume idle links is known afterwards, and is always checked: bytes that moved over a link at
the same time must have had room together. If they had not, the sweep says so (`Contended`) and the events decide.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from emulation.evaluate.room import busy_times, lone_duration

if TYPE_CHECKING:
    from collections.abc import Mapping

    from emulation.evaluate.outcome import Outcome
    from emulation.evaluate.tasks import Tasks


class Sweep:
    """One evaluation; after `go`, `start` and `end` hold every node's times in picoseconds."""

    events = 0
    """It has none."""

    def __init__(self, tasks: Tasks) -> None:
        self.tasks = tasks
        count = len(tasks.workload.nodes)
        self.start = [-1] * count
        self.end = [-1] * count
        self.outcome: Outcome | None = None
        """How it ended, where it did not simply complete."""
        self.unfinished: frozenset[int] = frozenset()
        """Nodes that were cut off: never any."""
        self.busy: Mapping[int, int] = {}
        """Link -> picoseconds in which anything moved over it."""

    def go(self) -> None:
        """Evaluate to the end.

        Raises:
            Contended: some link had to be shared; only the events can tell how.
            Deadlock: some nodes could never start; the message names them.
            Stalled: a link without capacity holds an activity up.
        """
        tasks = self.tasks
        durations: dict[int, tuple[int, int]] = {}
        ready = [0] * len(tasks.costs)
        waiting = list(tasks.waiting)
        order = [task for task, count in enumerate(waiting) if not count]
        flows: list[tuple[int, int, int]] = []
        for task in order:
            cost = tasks.costs[task]
            known = durations.get(id(cost))
            if known is None:
                known = durations[id(cost)] = lone_duration(cost, tasks.links)
            begin = ready[task]
            flow = begin + known[0]
            end = flow + known[1]
            for node in tasks.meetings[task].nodes:
                self.start[node], self.end[node] = begin, end
            if end > flow:
                flows.append((flow, end, task))
            for following in tasks.later[task]:
                ready[following] = max(ready[following], end)
                waiting[following] -= 1
                if not waiting[following]:
                    order.append(following)
        tasks.check_done(self.end)
        self.busy = busy_times(flows, tasks.costs, tasks.links)
