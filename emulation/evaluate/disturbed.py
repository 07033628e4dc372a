"""The event-driven evaluator where time changes what things take: faults that come and go, kernels beside collectives.

Two things are new to `events.Run`. A kernel whose pace may change is an activity of its own, whose work is its time in
seconds; when the pace changes, what is left of it becomes that much more or less. So it ends to the picosecond where it
would have ended if nobody had touched it, and on shared cores it gets the core time that its equals get. And at the
beginning of each stage of the scenario links get new capacities, and what moves goes on over the links, and at the
rate, that the new stage has for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from emulation.evaluate.events import Run
from emulation.evaluate.fluid import Activity, Stalled
from emulation.evaluate.outcome import Outcome
from emulation.units import PICOSECONDS_PER_SECOND, picoseconds, render

if TYPE_CHECKING:
    from collections.abc import Mapping

    from emulation.evaluate.tasks import Tasks
    from emulation.faults import NodeDeath

NO_DEVICES: Mapping[str, float] = {}


class _Abort(Exception):
    """The run is over before its work is done."""


class Disturbed(Run):
    """One evaluation under a scenario; after `go`, `outcome` says how it ended."""

    def __init__(self, tasks: Tasks) -> None:
        super().__init__(tasks)
        scenario = tasks.scenario
        self._stages = scenario.stages if scenario else []
        self._stage = 0
        self._dead: dict[str, None] = {}
        self._pace: Mapping[str, float] = self._stages[0].pace if self._stages else NO_DEVICES
        self._beside: dict[str, dict[int, float]] = {}
        """Device -> what communicates on it now, and by how much that slows its kernels down."""
        beside = {device for devices in tasks.overlaps.values() for device in devices}
        paced = beside.union(scenario.windowed if scenario else ())
        self._kernels: dict[str, dict[int, float]] = {device: {} for device in sorted(paced)}
        """Device whose pace may change -> kernels that run on it now, and how many times slower they are."""

    def go(self) -> None:
        """Evaluate to the end, or to where a fault ends it.

        Raises:
            Deadlock: some nodes could never start; the message names them.
            Stalled: a link without capacity holds an activity up, and no fault is to blame.
        """
        try:
            super().go()
        except _Abort as reason:
            self._cut_off(str(reason))

    def _prepare(self) -> None:
        for number, stage in enumerate(self._stages[1:], 1):
            self._after(stage.since, self._turn, number)
        for death in self.tasks.scenario.aborts if self.tasks.scenario else ():
            at = picoseconds(death.at)
            self._after(at, self._die, death)
            self._after(at + picoseconds(death.detection), self._give_up, death)

    # What starts and ends

    def _begin(self, index: int) -> None:
        action = self.tasks.meetings[index].action
        if self._lost(index):
            for node in self.tasks.meetings[index].nodes:
                self.start[node] = self._env.now
            return
        for device, slowdown in self.tasks.overlaps.get(index, NO_DEVICES).items():
            self._beside.setdefault(device, {})[index] = slowdown
            self._repace(device)
        if action.kind != "compute" or action.devices[0] not in self._kernels:
            super()._begin(index)
            return
        for node in self.tasks.meetings[index].nodes:
            self.start[node] = self._env.now
        device, cost = action.devices[0], self.tasks.costs[index]
        if cost.work:
            # On shared cores; the launch takes the pace it begins with.
            self._after(round(cost.fixed * self._slower(device)), self._flow, index)
        else:
            self._run_kernel(index, device, Activity((), 1.0, cost.fixed / PICOSECONDS_PER_SECOND))

    def _flow(self, event: Any) -> None:
        index = event.value
        if self._lost(index):
            return
        action, cost = self.tasks.meetings[index].action, self.tasks.cost_in(self._stage, index)
        activity = Activity(cost.weights, cost.cap, cost.work)
        if action.kind == "compute" and action.devices[0] in self._kernels:
            self._run_kernel(index, action.devices[0], activity)
            return
        self.fluids.start(index, activity, self._env.now)
        self._settle_later()

    def _run_kernel(self, index: int, device: str, activity: Activity) -> None:
        slower = self._kernels[device][index] = self._slower(device)
        activity.remaining *= slower
        self.fluids.start(index, activity, self._env.now)
        self._settle_later()

    def _done(self, index: int) -> None:
        if self._lost(index):
            return
        action = self.tasks.meetings[index].action
        for device in self.tasks.overlaps.get(index, NO_DEVICES):
            del self._beside[device][index]
            self._repace(device)
        if action.kind == "compute":
            self._kernels.get(action.devices[0], {}).pop(index, None)
        super()._done(index)

    # Pace

    def _slower(self, device: str) -> float:
        beside = self._beside.get(device)
        return self._pace.get(device, 1.0) * (1 + max(beside.values()) if beside else 1.0)

    def _repace(self, device: str) -> None:
        slower = self._slower(device)
        kernels = self._kernels.get(device, {})
        for index, before in kernels.items():
            if before != slower:
                self.fluids.stretch(index, slower / before, self._env.now)
                kernels[index] = slower
                self._settle_later()

    # What goes wrong

    def _turn(self, event: Any) -> None:
        self._stage = event.value
        stage = self._stages[self._stage]
        self._pace = stage.pace
        self.fluids.alter_links(stage.links)
        for index in self.fluids.moving:
            if self.tasks.meetings[index].action.kind != "compute":
                cost = self.tasks.cost_in(self._stage, index)
                self.fluids.alter(index, cost.weights, cost.cap, self._env.now)
        for device in self._kernels:
            self._repace(device)
        self._settle_later()

    def _settle(self, event: Any) -> None:
        try:
            super()._settle(event)
        except Stalled as error:
            if not self._stages or not self._stages[self._stage].down:
                raise
            raise _Abort(str(error)) from error

    @property
    def _patient(self) -> bool:
        left = self._stages[self._stage :]
        return any((s.down, s.avoided) != (left[0].down, left[0].avoided) for s in left)

    def _die(self, event: Any) -> None:
        death: NodeDeath = event.value
        self._dead[death.host] = None
        for index in self.fluids.moving:
            if self._lost(index):
                self.fluids.stop(index, self._env.now)
        self._settle_later()

    def _lost(self, index: int) -> bool:
        return bool(self._dead) and any(
            device.split("/", 1)[0] in self._dead for device in self.tasks.meetings[index].action.devices
        )

    def _give_up(self, event: Any) -> None:
        death: NodeDeath = event.value
        if death.host in self.tasks.hosts and any(end < 0 for end in self.end):
            raise _Abort(f"{death.host} died at {render(death.at, 's')}")

    def _cut_off(self, reason: str) -> None:
        now = self._env.now
        self.unfinished = frozenset(node for node, end in enumerate(self.end) if end < 0)
        for node in self.unfinished:
            self.start[node] = now if self.start[node] < 0 else self.start[node]
            self.end[node] = now
        self.outcome = Outcome("aborted", now / PICOSECONDS_PER_SECOND, reason)
