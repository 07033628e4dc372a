"""Copies within a device, and what a host's memory has to carry.

A copied byte is read once and written once. On a host one core copies at its memcpy rate, and all that copy (and all
adapters that read or write the host's memory) share the memory's bandwidth; where that bandwidth depends on the size
(caches), a large copy takes more of it per byte.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from emulation.cost import Cost
from emulation.figures import weakest
from emulation.units import picoseconds

if TYPE_CHECKING:
    from emulation.figures import Grade
    from emulation.graph import Node
    from emulation.topology import Topology


def local_copy(node: Node, topology: Topology) -> Cost:
    """A copy from a device to itself."""
    device = node.devices[0]
    if topology.is_host(device):
        memcpy = topology.host(device).software.memcpy
        link, weight = memory_weight(topology, device, node.nbytes, touches=2)
        grade = weakest((memcpy.grade_at(node.nbytes), memory_grade(topology, device, node.nbytes)))
        traffic = ((link, 2.0 * node.nbytes),)
        return Cost("memory", grade, 0, node.nbytes, ((link, weight),), memcpy.rate(node.nbytes), traffic)
    model = topology.model(device)
    seconds = 2 * node.nbytes / model.memory_bandwidth.rate(node.nbytes) if node.nbytes else 0.0
    grade = weakest((model.memory_bandwidth.grade_at(node.nbytes), model.launch.grade))
    return Cost("memory", grade, fixed=picoseconds(model.launch.value + seconds))


def memory_weight(topology: Topology, device: str, nbytes: int, *, touches: int) -> tuple[int, float]:
    """(memory link of the device's host, capacity used per byte moved) where each byte is touched `touches` times."""
    host = device.split("/", 1)[0]
    bandwidth = topology.profile.models[topology.host(host).cpu].memory_bandwidth
    return topology.memory[host], touches * bandwidth.peak.value / bandwidth.rate(nbytes)


def memory_grade(topology: Topology, device: str, nbytes: int) -> Grade:
    """Grade of the host memory's bandwidth at this size."""
    return topology.profile.models[topology.host(device).cpu].memory_bandwidth.grade_at(nbytes)
