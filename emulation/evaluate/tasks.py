"""A workload on a topology, made ready for an evaluator: tasks, what each costs, and what each waits for.

A *task* is one meeting of nodes (see `meetings`): they start together when the last of them is ready, and end together.
Both evaluators, the sweep and the events, run the same tasks, so they can only differ in when they say things happen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from emulation.cost import Cost
from emulation.cost.collectives import collective
from emulation.cost.compute import kernel
from emulation.cost.memory import local_copy
from emulation.cost.p2p import message
from emulation.graph import check_acyclic, check_devices
from emulation.meetings import meetings
from emulation.units import picoseconds

if TYPE_CHECKING:
    from emulation.graph import Node, Workload
    from emulation.meetings import Meeting
    from emulation.topology import Topology


class Tasks:
    """The tasks of a workload on a topology.

    Raises:
        WorkloadError: the graph is wrong in itself or for this topology.
    """

    def __init__(self, workload: Workload, topology: Topology) -> None:
        check_devices(workload, topology.order)
        self.workload = workload
        self.topology = topology
        self.before = workload.predecessors()
        """For each node, the nodes that must be done before it."""
        check_acyclic(workload, self.before)
        self.meetings: list[Meeting] = meetings(workload)
        known: dict[tuple[object, ...], Cost] = {}
        self.costs = [_cost_once(meeting.action, topology, known) for meeting in self.meetings]
        """Of each task."""
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

    def describe(self, task: int) -> str:
        """How messages name a task."""
        return self.workload.label(self.meetings[task].nodes[0])


def node_cost(node: Node, topology: Topology) -> Cost:
    """What one node costs, by its kind.

    Raises:
        WorkloadError: the profile lacks a figure or a way for it.
    """
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
            return collective(node, topology)
    return Cost("host", "measured")


def _cost_once(node: Node, topology: Topology, known: dict[tuple[object, ...], Cost]) -> Cost:
    # Training repeats itself: equal nodes at other places in the graph cost the same.
    what = (node.kind, node.op, node.devices, node.dtype, node.grade)
    key = (*what, node.nbytes, node.seconds, node.flops, node.cap, node.efficiency)
    found = known.get(key)
    if found is None:
        found = known[key] = node_cost(node, topology)
    return found
