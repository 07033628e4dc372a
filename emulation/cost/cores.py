"""Kernels, and collectives between processes, that share a host's cores.

A kernel on a host's processor, or on a process that is pinned to none of its cores, needs a core for as long as it
runs. Streams are serial queues, so no more kernels run at once than there are streams with kernels on them: where a
host has a core for each, and cores do not slow one another down, nobody waits and a kernel's time is what it is. Else
the work of each kernel, in core-seconds, is a fluid over the cores, of which one kernel gets one at most. That is what
a fair scheduler does to threads that always want to run, without what switching between them costs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from emulation.units import PICOSECONDS_PER_SECOND

if TYPE_CHECKING:
    from collections.abc import Iterable

    from emulation.cost import Cost
    from emulation.graph import Node
    from emulation.topology import Topology


def crowded(actions: Iterable[Node], topology: Topology) -> frozenset[str]:
    """Devices of hosts on which kernels can be in each other's way: more at once than cores, or than cores do well."""
    on_cores: dict[str, bool] = {}
    lanes: dict[str, dict[tuple[str, str | int], float]] = {}
    for node in actions:
        if node.kind != "compute":
            continue
        device = node.devices[0]
        if device not in on_cores:
            on_cores[device] = topology.model(device).kind == "cpu"
        if on_cores[device]:
            # Without a stream a kernel waits for its edges alone, so it may run beside any other.
            found = lanes.setdefault(device.split("/", 1)[0], {})
            lane = (device, node.stream or node.id)
            found[lane] = max(found.get(lane, 0.0), _weight(node, topology))
    full = [host for host, found in lanes.items() if sum(found.values()) > topology.host(host).cores]
    return frozenset(device for host in full for device, _ in lanes[host])


def on_cores(cost: Cost, node: Node, topology: Topology) -> Cost:
    """A kernel's cost as work on the shared cores of its host; with a core to itself it takes the same time.

    All of it is work, the launch too: on a processor, launching is computing.
    """
    work = cost.fixed / PICOSECONDS_PER_SECOND
    cores = topology.cores[node.devices[0].split("/", 1)[0]]
    weights = ((cores, _weight(node, topology)),) if work else ()
    return replace(cost, fixed=0, work=work, weights=weights, cap=1.0)


def collective_on_cores(cost: Cost, node: Node, topology: Topology) -> Cost:
    """A collective's cost as progress in seconds that takes cores as well; with enough of them it takes the same time.

    Processes send and add up with the cores that others compute on; what was measured on an idle host had them all.
    """
    host = node.devices[0].split("/", 1)[0]
    seconds = cost.fixed / PICOSECONDS_PER_SECOND + (cost.work / cost.cap if cost.work else 0.0)
    if not seconds or not cost.processor:
        return cost
    over = tuple((link, weight * cost.work / seconds) for link, weight in cost.weights if cost.work)
    cores = (topology.cores[host], min(cost.processor, topology.host(host).cores))
    return replace(cost, fixed=0, work=seconds, weights=(*over, cores), cap=1.0)


def _weight(node: Node, topology: Topology) -> float:
    """Cores' worth of a host that a kernel takes on one core.

    A kernel that takes c times as long while all cores run the same takes c cores' worth: what cores have in common,
    caches, memory and execution units of hardware threads, is shared out with them.
    """
    own = topology.model(node.devices[0]).compute[node.dtype].family(node.family)
    return own.contention.value if own and own.contention else 1.0
