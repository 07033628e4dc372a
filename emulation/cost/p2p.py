"""One message from one device to another.

``T = software + sum of hop latencies + bytes / rate``: latency is paid once, before the first byte counts; then the
bytes flow at the rate that the slowest link of the route gives them (cut-through: hops overlap). Messages that share
a link share its capacity, which is the evaluator's business; here it is said which links a byte uses, and how much.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from emulation.cost import Cost
from emulation.cost.memory import local_copy, memory_grade, memory_weight
from emulation.figures import weakest
from emulation.units import picoseconds

if TYPE_CHECKING:
    from emulation.graph import Node
    from emulation.topology import Topology


def message(node: Node, topology: Topology) -> Cost:
    """Cost of a transfer, or of a copy between two devices."""
    src, dst = node.devices
    if src == dst:
        return _loopback(node, topology)
    route = topology.route(src, dst)
    weights: list[tuple[int, float]] = []
    traffic: list[tuple[int, float]] = []
    for number in route.links:
        overhead = 1 / node.efficiency if topology.links[number].kind == "network" else 1.0
        weights.append((number, overhead))
        traffic.append((number, overhead * node.nbytes))
    grades = [route.grade, node.grade] if node.seconds else [route.grade]
    for device in filter(topology.is_host, node.devices):
        weights.append(memory_weight(topology, device, node.nbytes, touches=1))
        traffic.append((weights[-1][0], float(node.nbytes)))
        grades.append(memory_grade(topology, device, node.nbytes))
    fixed = route.latency + picoseconds(node.seconds)
    return Cost("p2p", weakest(grades), fixed, node.nbytes, _merged(weights), node.cap, _merged(traffic))


def _loopback(node: Node, topology: Topology) -> Cost:
    """Between two processes of one host: through its memory, at the pace of one core's copy."""
    copied = local_copy(node, topology)
    grade = weakest((copied.grade, node.grade)) if node.seconds else copied.grade
    cap = min(node.cap, copied.cap)
    fixed = copied.fixed + picoseconds(node.seconds)
    return Cost(
        "memory" if node.kind == "copy" else "p2p", grade, fixed, copied.work, copied.weights, cap, copied.traffic
    )


def _merged(pairs: list[tuple[int, float]]) -> tuple[tuple[int, float], ...]:
    total: dict[int, float] = {}
    for number, amount in pairs:
        total[number] = total.get(number, 0.0) + amount
    return tuple(sorted(total.items()))
