"""Kernels that share a host's cores.

A kernel on a host's processor, or on a process that is pinned to none of its cores, needs a core for as long as it
runs. Streams are serial queues, so no more kernels run at once than there are streams with kernels on them: where a
host has a core for each, nobody waits and a kernel's time is what it is. Where it has not, the work of each kernel, in
core-seconds, is a fluid over the cores, of which one kernel gets one at most. That is what a fair scheduler does to
threads that always want to run, without what switching between them costs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from emulation.units import PICOSECONDS_PER_SECOND, picoseconds

if TYPE_CHECKING:
    from collections.abc import Iterable

    from emulation.cost import Cost
    from emulation.graph import Node
    from emulation.topology import Topology


def crowded(actions: Iterable[Node], topology: Topology) -> frozenset[str]:
    """Devices of hosts on which more kernels can run at once than there are cores."""
    on_cores: dict[str, bool] = {}
    lanes: dict[str, set[tuple[str, str | int]]] = {}
    for node in actions:
        if node.kind != "compute":
            continue
        device = node.devices[0]
        if device not in on_cores:
            on_cores[device] = topology.model(device).kind == "cpu"
        if on_cores[device]:
            # Without a stream a kernel waits for its edges alone, so it may run beside any other.
            lanes.setdefault(device.split("/", 1)[0], set()).add((device, node.stream or node.id))
    full = [host for host, found in lanes.items() if len(found) > topology.host(host).cores]
    return frozenset(device for host in full for device, _ in lanes[host])


def on_cores(cost: Cost, device: str, topology: Topology) -> Cost:
    """A kernel's cost as work on the shared cores of its host; with a core to itself it takes the same time."""
    fixed = min(cost.fixed, picoseconds(topology.model(device).launch.value))
    work = (cost.fixed - fixed) / PICOSECONDS_PER_SECOND
    cores = topology.cores[device.split("/", 1)[0]]
    return replace(cost, fixed=fixed, work=work, weights=((cores, 1.0),) if work else (), cap=1.0)
