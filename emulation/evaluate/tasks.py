"""A workload on a topology, made ready for an evaluator: tasks, what each costs, and what each waits for.

A *task* is one meeting of nodes (see `meetings`): they start together when the last of them is ready, and end together.
Both evaluators, the sweep and the events, run the same tasks, so they can only differ in when they say things happen.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from emulation.band import claimed
from emulation.cost import Cost
from emulation.cost.collectives import collective
from emulation.cost.compute import kernel
from emulation.cost.cores import collective_on_cores, crowded, on_cores
from emulation.cost.memory import local_copy
from emulation.cost.overlap import overlaps
from emulation.cost.p2p import message
from emulation.figures import weakest
from emulation.graph import WorkloadError, check_acyclic, check_devices
from emulation.meetings import meetings
from emulation.scenario import COMMUNICATES, changed, on_stage
from emulation.units import picoseconds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from emulation.graph import Node, Workload
    from emulation.meetings import Meeting
    from emulation.scenario import Scenario
    from emulation.topology import DirectedLink, Topology


class Deadlock(WorkloadError):
    """Nodes that wait for one another for ever."""


class Tasks:
    """The tasks of a workload on a topology.

    Args:
        workload: what is done.
        topology: on what.
        costs: of each node, where they are known already (a folded program); else the cost models are asked.
        links: what the weights of these costs number; else the links of the topology.
        scenario: what goes wrong meanwhile; costs are those with which it begins, and so are given ones.
        hosts: that take part, where the workload does not name them all (a folded program).

    Raises:
        WorkloadError: the graph is wrong in itself or for this topology.
    """

    def __init__(
        self,
        workload: Workload,
        topology: Topology,
        *,
        costs: Sequence[Cost] = (),
        links: Sequence[DirectedLink] | None = None,
        scenario: Scenario | None = None,
        hosts: frozenset[str] = frozenset(),
    ) -> None:
        check_devices(workload, topology.order)
        self.workload = workload
        self.topology = topology
        self.before = workload.predecessors()
        """For each node, the nodes that must be done before it."""
        check_acyclic(workload, self.before)
        self.meetings: list[Meeting] = meetings(workload)
        self.links: Sequence[DirectedLink] = topology.links if links is None else links
        known: dict[tuple[object, ...], Cost] = {}
        self.costs = [
            costs[meeting.nodes[0]] if costs else _cost_once(meeting.action, topology, known)
            for meeting in self.meetings
        ]
        """Of each task."""
        self.overlaps: dict[int, dict[str, float]] = {}
        """For each task that slows kernels down while it communicates: the devices on which, and by how much."""
        self.scenario = scenario
        self._hosts = hosts
        if not costs:
            self._share_cores()
        self._slow_down_beside_communication()
        if scenario is not None and not costs:
            self._disturb(scenario)
        self.task_of = [0] * len(workload.nodes)
        """For each node, its task."""
        for index, meeting in enumerate(self.meetings):
            for node in meeting.nodes:
                self.task_of[node] = index
        self.later: list[list[int]] = [[] for _ in self.meetings]
        """For each task, the tasks that wait for it, once for every edge."""
        self.waiting = [0] * len(self.meetings)
        """For each task, how many edges lead to it."""
        for node, earlier in enumerate(self.before):
            index = self.task_of[node]
            self.waiting[index] += len(earlier)
            for first in earlier:
                self.later[self.task_of[first]].append(index)

    def check_done(self, end: Sequence[int]) -> None:
        """Refuse an evaluation in which some nodes never ended (-1).

        Raises:
            Deadlock: naming them, and what they wait for.
        """
        stuck = [node for node, at in enumerate(end) if at < 0]
        if not stuck:
            return
        shown = []
        label = self.workload.label
        for node in stuck[:6]:
            partners = [n for n in self.meetings[self.task_of[node]].nodes if n != node]
            missing = [n for n in self.before[node] if end[n] < 0]
            reason = missing or [n for p in partners for n in self.before[p] if end[n] < 0] or partners
            shown.append(f"  {label(node)} waits for {', '.join(map(label, reason[:4]))}")
        more = [f"  ... and {len(stuck) - 6} more"] if len(stuck) > 6 else []
        raise Deadlock("\n".join([f"deadlock: {len(stuck)} nodes can never run", *shown, *more]))

    @property
    def is_static(self) -> bool:
        """Whether nothing but the sharing of links makes time feed back into what tasks take."""
        return not self.overlaps and (self.scenario is None or self.scenario.is_static)

    @property
    def hosts(self) -> frozenset[str]:
        """Names of the hosts that take part."""
        named = (device.split("/", 1)[0] for node in self.workload.nodes for device in node.devices)
        return self._hosts or frozenset(named)

    def cost_in(self, stage: int, task: int) -> Cost:
        """What a task costs in a stage of the scenario."""
        if not stage or self.scenario is None or self.meetings[task].action.kind not in COMMUNICATES:
            return self.costs[task]
        known = (stage, task)
        if known not in self._in_stage:
            action, clean = self.meetings[task].action, self._clean[task]
            found = on_stage(action, clean, self.scenario.stages[stage], node_cost)
            self._in_stage[known] = changed(found, 1.0, self._delays.get(task, 0))
        return self._in_stage[known]

    def _share_cores(self) -> None:
        actions = [meeting.action for meeting in self.meetings]
        full = crowded(actions, self.topology)
        for task, action in enumerate(actions if full else ()):
            if action.kind == "compute" and action.devices[0] in full:
                self.costs[task] = on_cores(self.costs[task], action, self.topology)
            elif action.kind == "collective" and action.devices[0] in full:
                self.costs[task] = collective_on_cores(self.costs[task], action, self.topology)

    def _slow_down_beside_communication(self) -> None:
        self.overlaps = overlaps(self.meetings, self.costs, self.topology, self.links)
        slowed = {device for devices in self.overlaps.values() for device in devices}
        for task, meeting in enumerate(self.meetings if slowed else ()):
            if meeting.action.kind == "compute" and meeting.action.devices[0] in slowed:
                figures = self.topology.model(meeting.action.devices[0]).overlap.values()
                grade = weakest([self.costs[task].grade, *(figure.grade for figure in figures)])
                self.costs[task] = replace(self.costs[task], grade=grade)

    def _disturb(self, scenario: Scenario) -> None:
        actions = [meeting.action for meeting in self.meetings]
        self._clean = list(self.costs)
        self._in_stage: dict[tuple[int, int], Cost] = {}
        self._delays = scenario.delays(actions, self.costs)
        stretches = scenario.stretches(actions)
        first = scenario.stages[0]
        self.links = first.links
        for task, (action, clean) in enumerate(zip(actions, self._clean, strict=True)):
            cost = on_stage(action, clean, first, node_cost) if scenario.changes(action) else clean
            self.costs[task] = changed(cost, stretches.get(task, 1.0), self._delays.get(task, 0))

    def describe(self, task: int) -> str:
        """How messages name a task."""
        return self.workload.label(self.meetings[task].nodes[0])


def node_cost(node: Node, topology: Topology, method: str = "") -> Cost:
    """What one node costs, by its kind, with the band that its model earned on this cluster.

    A collective is done by `method`, or by the fastest where that is empty.

    Raises:
        WorkloadError: the profile lacks a figure or a way for it.
    """
    return claimed(
        _model_cost(node, topology, method), node.flops if node.kind == "compute" else node.nbytes, topology.profile
    )


def _model_cost(node: Node, topology: Topology, method: str) -> Cost:
    match node.kind:
        case "host":
            return Cost("host", node.grade, fixed=picoseconds(node.seconds))
        case "compute":
            return kernel(node, topology.model(node.devices[0]))
        case "copy" if node.devices[0] == node.devices[1]:
            return local_copy(node, topology)
        case "copy" | "transfer":
            return message(node, topology)
        case "collective":
            return collective(node, topology, method)
    return Cost("host", "measured")


def _cost_once(node: Node, topology: Topology, known: dict[tuple[object, ...], Cost]) -> Cost:
    # Training repeats itself: equal nodes at other places in the graph cost the same.
    what = (node.kind, node.op, node.devices, node.dtype, node.family, node.shape, node.grade)
    key = (*what, node.nbytes, node.seconds, node.flops, node.cap, node.efficiency)
    found = known.get(key)
    if found is None:
        found = known[key] = node_cost(node, topology)
    return found
