"""A plan: who computes which part of which operator, on which device, in which order.

It holds what the first two phases decided and nothing else. Communication is not in it: phase 3 (`dependency`) derives
that from the plan, into a `program.Program`.

A *stage* is a part of the graph with one group of devices (nnScaler calls it a segment). Stages need not have devices
of their own: two may share a mesh (interleaved pipelines, three forward passes of one module), or one may lie on the
devices of several others (interlaced pipelines). A *block* is one pass of one stage for one micro-batch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engines.superscaler.layout import Mesh

Pass = Literal["F", "B", "W"]
"""Forward; backward; the weights' half of a backward pass, where B computes the gradients of activations alone."""


class Block(NamedTuple):
    """One pass of a stage for one micro-batch."""

    stage: int
    micro_batch: int
    what: Pass


@dataclass(frozen=True)
class Group:
    """Operators of a stage that are recomputed together in the backward pass; only what enters the group is kept.

    With `parts` > 1 it is co-sharded: each device does its share in `parts` pieces one after another, each forward
    again and backward before the next, so that it never keeps more than one piece's activations. There is no
    communication within such a group.
    """

    ops: tuple[str, ...]
    """In graph order, without a gap."""
    parts: int = 1
    splits: Mapping[str, str] = field(default_factory=dict)
    """Of a co-sharded group: the identifier each operator is split on along the sequential axis; '' does all of it in
    every part."""


@dataclass(frozen=True)
class Weight:
    """Where a parameter's optimizer state, gradient and value lie between their uses (ZeRO).

    By default they lie as the operators use them. `axes` (mesh axis, dim) split the optimizer's update; `gradient` and
    `value` say whether those are kept split as well: stages 1, 2 and 3 of ZeRO (Rajbhandari et al., SC 2020).
    """

    axes: tuple[tuple[int, int], ...] = ()
    gradient: bool = False
    value: bool = False


@dataclass(frozen=True)
class Stage:
    """Operators with one group of devices, and how each is split over it."""

    name: str
    ops: tuple[str, ...]
    """In graph order."""
    mesh: Mesh
    """op-assign."""
    splits: Mapping[str, tuple[str, ...]]
    """op-trans: for every operator and mesh axis the identifier it is split on, '' where every device along that axis
    does the same. Two axes with the same identifier split it further, the first being major."""
    groups: tuple[Group, ...] = ()
    """Recomputed, or co-sharded; disjoint, in order."""
    weights: Mapping[str, Weight] = field(default_factory=dict)
    """Parameters that are not kept as they are used. A parameter of several stages is kept where the first has it."""


@dataclass(frozen=True)
class Plan:
    """What the three phases start from and end in; canonical and hashable, see `to_json`."""

    graph: str
    """Digest of the graph it is for."""
    stages: tuple[Stage, ...]
    micro_batches: int
    order: tuple[Block, ...]
    """op-order: all blocks of a step, so that what a block needs stands before it. Every device does its own blocks in
    this order, and every device takes part in its communication in this order: no two can wait for each other."""
    name: str = ""
    """For people: `1F1B x TP 2`."""
    origin: Mapping[str, str] = field(default_factory=dict)
    """What made it: `search` or a named plan, cost source, profile digest."""

    @cached_property
    def devices(self) -> tuple[int, ...]:
        """All devices, rising."""
        return tuple(sorted({device for stage in self.stages for device in stage.mesh.devices}))

    @cached_property
    def stage_of(self) -> Mapping[str, int]:
        """Operator -> number of its stage."""
        return {op: number for number, stage in enumerate(self.stages) for op in stage.ops}
