"""Compute: the roofline, with efficiencies.

A kernel takes ``launch + max(flops / (peak * eta_f(flops)), bytes / (bandwidth * eta_b(bytes)))``: it is limited by
arithmetic or by memory, whichever is slower (Williams, Waterman, Patterson: Roofline, CACM 2009). The efficiencies eta
are monotone and piecewise linear in the logarithm of the work, because small kernels fill a processor badly. A profile
may have efficiencies and a launch time for each family of operators, and for matrix products the sizes at which they
reach half of their rate.
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
    from emulation.processors import DeviceModel


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
    own = throughput.family(node.family)
    launch = own.launch if own and own.launch else model.launch
    curve = own.bytes if own else None
    arithmetic = node.flops / throughput.rate(node.flops, node.family, node.shape) if node.flops else 0.0
    memory = node.nbytes / bandwidth.rate(node.nbytes, curve) if node.nbytes else 0.0
    bound_by_arithmetic = arithmetic >= memory
    limit = (
        throughput.grade_at(node.flops, node.family) if bound_by_arithmetic else bandwidth.grade_at(node.nbytes, curve)
    )
    grade = weakest((limit, launch.grade)) if node.flops or node.nbytes else launch.grade
    return Cost("compute", grade, fixed=picoseconds(launch.value + max(arithmetic, memory)))
