"""Compute: the roofline, with efficiencies.

A kernel takes ``launch + max(flops / (peak * eta_f(flops)), bytes / (bandwidth * eta_b(bytes)))``: it is limited by
arithmetic or by memory, whichever is slower (Williams, Waterman, Patterson: Roofline, CACM 2009). The efficiencies eta
are monotone and piecewise linear in the logarithm of the work, because small kernels fill a processor badly. Where a
model says what a family of operators gets (`OperatorEfficiency`, by shape for products), that replaces the curves.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from emulation.cost import Cost
from emulation.figures import corrected, weakest
from emulation.graph import WorkloadError
from emulation.units import picoseconds

if TYPE_CHECKING:
    from emulation.figures import Grade
    from emulation.graph import Node
    from emulation.profile import DeviceModel


def kernel(node: Node, model: DeviceModel) -> Cost:
    """Cost of a compute node on a device of this model.

    Raises:
        WorkloadError: the model has no figure for the dtype.
    """
    if node.dtype not in model.compute:
        near = difflib.get_close_matches(node.dtype, list(model.compute), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(model.compute)}"
        raise WorkloadError(f"#{node.id} compute {node.name!r}: {node.devices[0]} has no peak for {node.dtype!r}{hint}")
    arithmetic, work_grade = _arithmetic(node, model)
    memory, traffic_grade = _memory(node, model)
    limit = work_grade if arithmetic >= memory else traffic_grade
    grade = weakest((limit, model.launch.grade)) if node.flops or node.nbytes else model.launch.grade
    return Cost("compute", grade, fixed=picoseconds(model.launch.value + max(arithmetic, memory)))


def _arithmetic(node: Node, model: DeviceModel) -> tuple[float, Grade]:
    """Seconds of the operations alone, and the grade of the rate."""
    throughput, own = model.compute[node.dtype], model.operators.get(node.family)
    if own is None or own.arithmetic is None:
        seconds = node.flops / throughput.rate(node.flops) if node.flops else 0.0
        return seconds, throughput.grade_at(node.flops)
    rate = throughput.peak.value * own.part(node.shape)
    return node.flops / rate, own.arithmetic_grade(throughput.peak.grade)


def _memory(node: Node, model: DeviceModel) -> tuple[float, Grade]:
    """Seconds of the traffic alone, and the grade of the rate."""
    bandwidth, own = model.memory_bandwidth, model.operators.get(node.family)
    if own is None or own.memory is None:
        return (node.nbytes / bandwidth.rate(node.nbytes) if node.nbytes else 0.0), bandwidth.grade_at(node.nbytes)
    return node.nbytes / (bandwidth.peak.value * own.memory.value), corrected(bandwidth.peak.grade, own.memory.grade)
