"""What a parameter costs a stage: kept values, gradients and optimizer state, and how replicas agree on them (ZeRO).

Level 0 keeps everything on every replica. Level 1 divides the optimizer's state, level 2 the gradients as well, level 3
the values too (Rajbhandari et al.: ZeRO, SC 2020).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engines.superscaler.plan import Weight
from engines.superscaler.search.options import ADDENDS

if TYPE_CHECKING:
    from engines.superscaler.cost import Costs
    from engines.superscaler.graph import Tensor
    from engines.superscaler.layout import Mesh
    from engines.superscaler.precision import Precision
    from engines.superscaler.search.options import Code

ADDS = 3
"""How often a gradient that is added to those of earlier micro-batches crosses the memory."""


@dataclass(frozen=True)
class Keeping:
    """One way to keep a parameter."""

    level: int
    """Of ZeRO."""
    weight: Weight
    once: float
    """Seconds per step: gradients summed, the update, values gathered."""
    each: float
    """Seconds per micro-batch: its gradient added to those before; at higher levels divided, and the value gathered."""
    nbytes: int
    """Kept on each device."""


def keepings(
    tensor: Tensor,
    value: Code,
    gradient: Code,
    mesh: Mesh,
    costs: Costs,
    precision: Precision,
    levels: tuple[int, ...],
) -> tuple[Keeping, ...]:
    """The ways to keep a parameter that its operator needs as `value` and whose gradient comes as `gradient`.

    A level that cannot be had (no dim divides, or nobody repeats it) is left out; if none is left, it is kept whole.
    """
    parts = math.prod(size for state, size in zip(value, mesh.shape, strict=True) if state >= 0)
    elements = tensor.elements // parts
    width, state = precision.nbytes(tensor.dtype), precision.state_bytes(tensor.dtype)
    rank = mesh.devices[0]
    if not tensor.requires_grad:
        return (Keeping(0, Weight(), 0.0, 0.0, elements * width),)
    axes = tuple(axis for axis, what in enumerate(gradient) if what == ADDENDS and mesh.shape[axis] > 1)
    update = costs.update(rank, elements * precision.update_bytes(tensor.dtype))
    added = costs.update(rank, ADDS * elements * width)
    summed = costs.collective("all-reduce", mesh, axes, elements * width) if axes else 0.0
    whole = Keeping(0, Weight(), summed + update, added, elements * (2 * width + state))
    split = _split(tensor, value, axes, mesh)
    if not axes or split is None:
        return (whole,)
    found = [whole] if 0 in levels else []
    size = math.prod(mesh.shape[axis] for axis in axes)
    update = costs.update(rank, elements // size * precision.update_bytes(tensor.dtype))
    scatter = costs.collective("reduce-scatter", mesh, axes, elements * width)
    gather = costs.collective("all-gather", mesh, axes, elements * width)
    part = elements // size
    scattered = scatter + costs.update(rank, ADDS * part * width)
    if 1 in levels:
        found.append(Keeping(1, Weight(split), scatter + update + gather, added, elements * 2 * width + part * state))
    if 2 in levels:
        kept = elements * width + part * (width + state)
        found.append(Keeping(2, Weight(split, gradient=True), update + gather, scattered, kept))
    if 3 in levels:
        weight = Weight(split, gradient=True, value=True)
        found.append(Keeping(3, weight, update, scattered + 2 * gather, part * (2 * width + state)))
    return tuple(found) or (whole,)


def _split(tensor: Tensor, value: Code, axes: tuple[int, ...], mesh: Mesh) -> tuple[tuple[int, int], ...] | None:
    """(axis, dim) of all axes: along one dim if it divides, else each along the first that does."""
    local = list(tensor.shape)
    for state, size in zip(value, mesh.shape, strict=True):
        if state >= 0:
            local[state] //= size
    together = math.prod(mesh.shape[axis] for axis in axes)
    for dim, length in enumerate(local):
        if length % together == 0:
            return tuple((axis, dim) for axis in axes)
    found = []
    for axis in axes:
        dim = next((dim for dim, length in enumerate(local) if length % mesh.shape[axis] == 0), None)
        if dim is None:
            return None
        local[dim] //= mesh.shape[axis]
        found.append((axis, dim))
    return tuple(found)
