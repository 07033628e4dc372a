"""Compute: the roofline, with efficiencies.

A kernel takes ``launch + max(flops / (peak * eta_f(flops)), bytes / (bandwidth * eta_b(bytes)))``: it is limited by
arithmetic or by memory, whichever is slower (Williams, Waterman, Patterson: Roofline, CACM 2009). The efficiencies eta
are monotone and piecewise linear in the logarithm of the work, because small kernels fill a processor badly.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from emulation.cost import Cost
from emulation.figures import weakest
from emulation.graph import WorkloadError
from emulation.units import picoseconds

if TYPE_CHECKING:
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
    throughput, bandwidth = model.compute[node.dtype], model.memory_bandwidth
    arithmetic = node.flops / throughput.rate(node.flops) if node.flops else 0.0
    memory = node.nbytes / bandwidth.rate(node.nbytes) if node.nbytes else 0.0
    limit = throughput.grade_at(node.flops) if arithmetic >= memory else bandwidth.grade_at(node.nbytes)
    grade = weakest((limit, model.launch.grade)) if node.flops or node.nbytes else model.launch.grade
    return Cost("compute", grade, fixed=picoseconds(model.launch.value + max(arithmetic, memory)))
