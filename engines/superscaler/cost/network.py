"""Communication on a topology, by the emulator's own models.

All groups of a mesh that do the same collective do it at the same time, so they share links: two tensor-parallel groups
that span hosts share their hosts' adapters. The fluid of one group is slowed down by what the groups that have ranks on
the same hosts put on its busiest link.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from emulation.cost.collectives import collective
from emulation.cost.p2p import message
from emulation.graph import Node, WorkloadError
from harness.api import PlanError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from emulation.cost import Cost as EmulatedCost
    from emulation.topology import Topology
    from engines.superscaler.cost import Kind, Message
    from engines.superscaler.layout import Mesh

PICO = 1e-12


class Network:
    """Prices of communication between ranks of a cluster.

    Args:
        topology: links and routes.
        places: the device of each rank.
    """

    def __init__(self, topology: Topology, places: Sequence[str]) -> None:
        self._topology = topology
        self._places = tuple(places)
        self._seconds: dict[tuple[object, ...], float] = {}
        self._crowded: dict[tuple[object, ...], float] = {}
        self._groups: dict[tuple[object, ...], tuple[tuple[int, ...], ...]] = {}

    def collective(self, kind: Kind, mesh: Mesh, axes: Sequence[int], nbytes: int) -> float:
        """See `Costs.collective`."""
        axes = tuple(axes)
        form = (kind, mesh.devices, mesh.shape, axes)
        key = (*form, nbytes)
        if key not in self._seconds:
            if form not in self._groups:
                self._groups[form] = self._neighbours(mesh, axes)
            groups = self._groups[form]
            first = self._cost(kind, groups[0], nbytes)
            slowest = 1 / first.cap
            if first.work:
                full = (*form, first.method)
                if full not in self._crowded:
                    self._crowded[full] = self._crowding(kind, groups, nbytes)
                slowest = max(slowest, self._crowded[full])
            self._seconds[key] = first.fixed * PICO + first.work * slowest
        return self._seconds[key]

    def _neighbours(self, mesh: Mesh, axes: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        """The first group, and those that have ranks on its hosts."""
        groups = mesh.groups(axes)
        hosts = {self._host(rank) for rank in groups[0]}
        return tuple(group for group in groups if any(self._host(rank) in hosts for rank in group))

    def _host(self, rank: int) -> str:
        return self._places[rank].partition("/")[0]

    def _cost(self, kind: Kind, group: tuple[int, ...], nbytes: int, method: str = "") -> EmulatedCost:
        devices = tuple(self._places[rank] for rank in group)
        node = Node(-1, "collective", kind, devices, "", (), nbytes=nbytes, op=kind)
        try:
            return collective(node, self._topology, method)
        except WorkloadError as error:
            raise PlanError(str(error)) from error

    def _crowding(self, kind: Kind, groups: tuple[tuple[int, ...], ...], nbytes: int) -> float:
        """Seconds per byte on the busiest link of the first group, when all of them communicate."""
        load: dict[int, float] = {}
        first = self._cost(kind, groups[0], nbytes)
        for group in groups:
            cost = self._cost(kind, group, nbytes)
            share = cost.work / first.work if first.work else 0.0
            for link, weight in cost.weights:
                load[link] = load.get(link, 0.0) + weight * share
        return max(load[link] / self._topology.links[link].capacity for link, _ in first.weights)

    def messages(self, messages: Sequence[Message]) -> float:
        """See `Costs.messages`."""
        latency, load = 0, dict[int, float]()
        slowest = 0.0
        for source, target, nbytes in messages:
            if source == target or not nbytes:
                continue
            devices = (self._places[source], self._places[target])
            cost = message(Node(-1, "transfer", "", devices, "", (), nbytes=nbytes), self._topology)
            latency = max(latency, cost.fixed)
            slowest = max(slowest, cost.work / cost.cap)
            for link, weight in cost.weights:
                load[link] = load.get(link, 0.0) + weight * cost.work
        shared = max((amount / self._topology.links[link].capacity for link, amount in load.items()), default=0.0)
        return latency * PICO + max(slowest, shared)
