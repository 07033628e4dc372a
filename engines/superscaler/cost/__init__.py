"""What things cost: operators on one device, steps of communication on a mesh, messages between meshes.

Search asks a `Costs` and never a profile. There are three sources, and none stands in for another: a figure that a
source does not have is a `PlanError`, not a default.

``abstract``  the roofline and the collectives of `emulation.cost` on a hardware profile: what the emulator itself uses
``profile``   operators from recorded times (`recorded`); communication as above
``live``      operators timed on this machine (`live`), kept in a file that is then a recorded profile
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from engines.superscaler.graph import Graph, Op
    from engines.superscaler.layout import Mesh

Source = Literal["abstract", "profile", "live"]
Kind = Literal["all-reduce", "reduce-scatter", "all-gather", "all-to-all"]


class Message(NamedTuple):
    """Bytes from one rank to another."""

    source: int
    target: int
    nbytes: int


@dataclass(frozen=True)
class OperatorCost:
    """One part of an operator on one device."""

    forward: float
    """Seconds."""
    backward: float
    """Seconds of the gradients of all inputs together; 0 where none is wanted."""
    saved: tuple[str, ...] = ()
    """Tensors of the operator that are kept for the backward pass. One that two operators keep is there once, so
    whoever adds up has to count tensors and not operators."""
    saved_extra: int = 0
    """Bytes kept beside those."""
    workspace: int = 0
    """Bytes of temporaries while it runs."""


class Costs(Protocol):
    """A source of costs for the devices of one cluster; ranks are numbers, as in a mesh."""

    source: Source
    digest: str
    """SHA-256 of everything the figures come from; part of every plan."""
    ranks: int
    """Devices there are."""

    def operator(self, graph: Graph, op: Op, degrees: Mapping[str, int]) -> OperatorCost:
        """Cost of one part when identifiers are split into so many parts.

        Raises:
            PlanError: the source has no figure for it.
        """

    def collective(self, kind: Kind, mesh: Mesh, axes: Sequence[int], nbytes: int) -> float:
        """Seconds in which every group along `axes` does the collective, all groups at the same time.

        `nbytes` is the full buffer: what a rank holds before (of an all-gather: after) it.
        """

    def messages(self, messages: Sequence[Message]) -> float:
        """Seconds until all of these have arrived, sent at once."""

    def update(self, rank: int, nbytes: int) -> float:
        """Seconds of an optimizer's pass that reads and writes so many bytes on a device."""

    def memory(self, rank: int) -> int:
        """Bytes of a device that a plan may use."""


def signature(graph: Graph, op: Op) -> str:
    """What decides an operator's cost: equal for all layers of a model."""
    tensors = [graph.tensors[name] for name in (*op.inputs, *op.outputs)]
    shapes = [[*tensor.shape, tensor.dtype, tensor.role, tensor.requires_grad] for tensor in tensors]
    places: dict[str, int] = {}
    for name in (*op.inputs, *op.outputs):
        places.setdefault(name, len(places))
    note = op.annotation
    names = [places[name] for name in (*op.inputs, *op.outputs)]
    dims = [note.inputs, note.outputs, sorted(note.frozen), sorted(note.reductions.items())]
    return json.dumps([op.target, names, shapes, dims, dict(op.attributes)], sort_keys=True, default=str)
