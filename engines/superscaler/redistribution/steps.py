"""Steps from one layout to another, and what each sends."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from engines.superscaler.redistribution.pieces import pieces

if TYPE_CHECKING:
    from engines.superscaler.layout import Layout, Mesh

Kind = Literal["all-reduce", "reduce-scatter", "all-gather", "all-to-all", "slice", "mask", "exchange"]


@dataclass(frozen=True)
class Step:
    """One step on one mesh; the fields of a `program.Move` that are not its buffers.

    The mesh may be a refinement of the one that was asked about: the same devices in the same order.
    """

    kind: Kind
    axes: tuple[int, ...]
    """Along which the groups lie. Those of a dim are in its order, major first, so that `mesh.groups(axes)` has the
    members of a group in the order of their parts."""
    before: Layout
    after: Layout

    @property
    def mesh(self) -> Mesh:
        """Of both layouts."""
        return self.before.mesh

    @property
    def size(self) -> int:
        """Members of a group."""
        return math.prod(self.mesh.shape[axis] for axis in self.axes)


@dataclass(frozen=True)
class Crossing:
    """The step between two meshes, piece by piece; the fields of a `program.Transfer` that are not its buffers."""

    before: Layout
    after: Layout
    kind: Literal["transfer"] = "transfer"


def received(step: Step | Crossing, shape: tuple[int, ...]) -> dict[int, int]:
    """Elements that every rank receives; with ring algorithms, as `program.Collective.received` counts.

    Args:
        step: What is done.
        shape: Of the whole tensor.
    """
    return {rank: into for rank, (_, into) in traffic(step, shape).items()}


def lacked(step: Step | Crossing, shape: tuple[int, ...]) -> int:
    """Elements that the rank which lacks most receives in an exchange; without looking for who sends them."""
    before = {device: (box, part) for device, box, part in step.before.held(shape)}
    most = 0
    for device, box, (part, parts) in step.after.held(shape):
        own, (index, addends) = before.get(device, (None, next(iter(before.values()))[1]))
        mine = range(-(-part * addends // parts), -(-(part + 1) * addends // parts))
        need = len(mine) * math.prod(stop - start for start, stop in box)
        if own is not None and index in mine:
            need -= math.prod(max(0, min(b, d) - max(a, c)) for (a, b), (c, d) in zip(box, own, strict=True))
        most = max(most, need)
    return most


def traffic(step: Step | Crossing, shape: tuple[int, ...]) -> dict[int, tuple[int, int]]:
    """Elements that every rank sends and receives."""
    if isinstance(step, Crossing) or step.kind == "exchange":
        out = dict.fromkeys(sorted({*step.before.mesh.devices, *step.after.mesh.devices}), 0)
        into = dict(out)
        for piece in pieces(step.before, step.after, shape):
            if piece.source != piece.target:
                out[piece.source] += piece.elements
                into[piece.target] += piece.elements
        return {rank: (out[rank], into[rank]) for rank in out}
    each = ring(step.kind, step.size, math.prod(step.before.local_shape(shape)))
    return dict.fromkeys(step.mesh.devices, (each, each))


def ring(kind: Kind, size: int, own: int) -> int:
    """Elements that a member receives when `size` members hold `own` elements each before a collective."""
    match kind:
        case "all-reduce":
            return 2 * (size - 1) * own // size
        case "all-gather":
            return (size - 1) * own
        case "reduce-scatter" | "all-to-all":
            return (size - 1) * own // size
        case _:
            return 0


def sent_in_all(steps: tuple[Step | Crossing, ...], shape: tuple[int, ...]) -> int:
    """Elements transmitted by all ranks together: what `lower_bound` bounds.

    An all-reduce of a size that its group does not divide is counted as a whole, where `received` rounds down.
    """
    total = 0
    for step in steps:
        if step.kind == "all-reduce":
            groups = step.mesh.size // step.size
            total += groups * 2 * (step.size - 1) * math.prod(step.before.local_shape(shape))
        else:
            total += sum(received(step, shape).values())
    return total
