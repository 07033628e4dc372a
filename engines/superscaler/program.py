"""One instruction list, for everybody: what phase 3 derives from a plan.

A `Program` is written once for all devices: its *actions* are those of a whole mesh ("all-gather along axis 1"), in
one global order. `project` gives the list of one rank, with the peers named: *instructions*. The runtime carries out
instructions, on `torch.distributed` or all ranks in one process; the verifier checks instructions; the emulator
executes the actions themselves (a mesh of a thousand ranks does the same thing a thousand times) or, for small
clusters, the instructions. Because every list is a projection of one order, collectives come in the same order on all
members.

Every value a rank holds has a name, a `Buffer`. Actions read and write buffers and have no other effects.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple, overload

from engines.superscaler.redistribution.steps import ring

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engines.superscaler.graph import Graph
    from engines.superscaler.layout import Box, Layout, Mesh, Reduction
    from engines.superscaler.plan import Block, Plan

LASTING = -1
"""The micro-batch of what outlives them all: weights, constants, accumulated gradients, optimizer state."""
HERE = -2
"""In a template of `Sections`: the micro-batch of the block."""


class Buffer(NamedTuple):
    """Name of a value on a rank. The same name on two ranks is two values: each rank's own part, in one layout."""

    tensor: str
    kind: Literal["value", "gradient", "state"]
    variant: str = ""
    """Tells apart the layouts (and addends before their sum) of one tensor; empty as its operator made it."""
    micro_batch: int = LASTING


@dataclass(frozen=True)
class Run:
    """Operators that a rank computes with no communication between them: what autograd differentiates in one go."""

    number: int
    stage: int
    mesh: Mesh
    """With its sequential axis, in a co-sharded group: then the rank does the operators for one part after another, on
    its share of `inputs` along that axis, and joins (or adds) the parts of what comes out; buffers hold the whole."""
    ops: tuple[str, ...]
    splits: Mapping[str, tuple[str, ...]]
    """For every op and axis of the mesh (the sequential one last, if any) the identifier, or ''."""
    inputs: tuple[tuple[str, str, Layout], ...]
    """(tensor, variant, layout) of what it reads: activations, inputs, weights and constants, each in one layout.
    Weights and constants (the roles `parameter` and `buffer`) are read from buffers that are `LASTING`, all else from
    those of the micro-batch."""
    outputs: tuple[tuple[str, str, Layout], ...]
    """(tensor, variant, layout) of what others read."""
    gradients: tuple[tuple[str, str, Layout], ...]
    """(tensor, variant, layout) of the gradients that its backward pass yields, for those `inputs` that have any, each
    a buffer of the micro-batch. None: the run has no backward pass."""
    gradient_outputs: tuple[str, ...] = ()
    """Outputs whose gradient the backward pass is given, as ``Buffer(tensor, "gradient", "", micro_batch)`` in the
    output's own layout with partial axes replicated. That of any other output is zero."""


# --- actions: of a whole mesh -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Load:
    """Each rank takes its part of a tensor of the batch."""

    mesh: Mesh
    target: Buffer
    layout: Layout


@dataclass(frozen=True)
class Compute:
    """A run, forward or backward.

    `forward` reads the run's inputs and writes its outputs; with `saved` it keeps what the backward pass needs, the
    weights excepted, which are read again where they then lie (`effects` says what is read when).
    `backward` reads the gradients of outputs and writes gradients of inputs, and drops what was kept; `inputs` yields
    those of activations alone and keeps what `weights` needs, which yields the rest and reads no gradients again.
    A run with a sequential axis keeps nothing: its `backward` reads `inputs` and does each part forward again first.
    """

    run: int
    what: Literal["forward", "backward", "inputs", "weights"]
    micro_batch: int
    saved: bool = True


@dataclass(frozen=True)
class Move:
    """One step from one layout of a tensor to another, on one mesh."""

    mesh: Mesh
    kind: Literal["all-reduce", "reduce-scatter", "all-gather", "all-to-all", "slice", "mask", "exchange"]
    """`mask` turns equal copies into addends: one keeps its copy, the others hold zeros. `exchange` sends every rank
    what it lacks, piece by piece."""
    source: Buffer
    target: Buffer
    before: Layout
    after: Layout
    shape: tuple[int, ...]
    """Of the whole tensor."""
    dtype: str
    axes: tuple[int, ...] = ()
    """Along which the group lies; of no meaning to `exchange`."""


@dataclass(frozen=True)
class Transfer:
    """From the layout on one mesh to the layout on another, piece by piece; the meshes may share ranks."""

    source: Buffer
    target: Buffer
    before: Layout
    after: Layout
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Add:
    """Terms of equal layout summed, on each rank by itself: gradients from several consumers."""

    mesh: Mesh
    sources: tuple[Buffer, ...]
    target: Buffer


@dataclass(frozen=True)
class Seed:
    """The gradient of the loss: one over the number of micro-batches."""

    mesh: Mesh
    target: Buffer
    value: float


@dataclass(frozen=True)
class Accumulate:
    """Add a micro-batch's gradient of a weight to what earlier ones left (the first one starts it)."""

    mesh: Mesh
    source: Buffer
    target: Buffer


@dataclass(frozen=True)
class Update:
    """The optimizer's step on each rank's part of a weight, in place."""

    mesh: Mesh
    weight: Buffer
    gradient: Buffer
    layout: Layout
    """Of the part that is updated."""


@dataclass(frozen=True)
class Free:
    """Forget values that nothing reads any more."""

    mesh: Mesh
    buffers: tuple[Buffer, ...]


Action = Load | Compute | Move | Transfer | Add | Seed | Accumulate | Update | Free


@dataclass(frozen=True)
class Section:
    """The actions that belong to one block, or to what comes after the last (`block` None: reduce and update)."""

    block: Block | None
    actions: tuple[Action, ...]


@dataclass(frozen=True)
class Sections(Sequence[Section]):
    """Sections as templates: what differs between micro-batches is their number alone.

    A sequence like any other that makes its items when asked for them, so that hundreds of micro-batches of a
    thousand ranks cost no memory. Whoever treats all micro-batches alike may look at `templates` instead.
    """

    blocks: tuple[Block | None, ...]
    which: tuple[int, ...]
    """Of every section the number of its template."""
    templates: tuple[tuple[Action, ...], ...]
    """Actions whose buffers and computations have `HERE` in place of a micro-batch."""

    def __len__(self) -> int:
        return len(self.blocks)

    @overload
    def __getitem__(self, number: int) -> Section: ...
    @overload
    def __getitem__(self, number: slice) -> tuple[Section, ...]: ...
    def __getitem__(self, number: int | slice) -> Section | tuple[Section, ...]:
        if isinstance(number, slice):
            return tuple(self[n] for n in range(*number.indices(len(self))))
        block, template = self.blocks[number], self.templates[self.which[number]]
        if block is None:
            return Section(None, template)
        return Section(block, tuple(instantiated(action, block.micro_batch) for action in template))


def instantiated(action: Action, micro_batch: int) -> Action:
    """An action of a template, for one micro-batch."""

    def at(buffer: Buffer) -> Buffer:
        return buffer._replace(micro_batch=micro_batch) if buffer.micro_batch == HERE else buffer

    match action:
        case Compute():
            return Compute(action.run, action.what, micro_batch, action.saved)
        case Move(mesh, kind, source, target, before, after, shape, dtype, axes):
            return Move(mesh, kind, at(source), at(target), before, after, shape, dtype, axes)
        case Transfer(source, target, before, after, shape, dtype):
            return Transfer(at(source), at(target), before, after, shape, dtype)
        case Accumulate():
            return Accumulate(action.mesh, at(action.source), action.target)
        case Load():
            return Load(action.mesh, at(action.target), action.layout)
        case Seed():
            return Seed(action.mesh, at(action.target), action.value)
        case Add():
            return Add(action.mesh, tuple(map(at, action.sources)), at(action.target))
        case Update():
            return action
        case Free():
            return Free(action.mesh, tuple(map(at, action.buffers)))


@dataclass(frozen=True)
class Program:
    """A step of training, for all ranks."""

    graph: Graph
    plan: Plan
    runs: tuple[Run, ...]
    weights: Mapping[str, Layout]
    """Where each parameter's value lies before and after a step: tensor -> layout of ``Buffer(tensor, "value")``."""
    sections: Sequence[Section]
    """In one global order."""
    losses: tuple[Buffer, ...] = ()
    """Loss of each micro-batch: read it from the ranks of the layout `loss_layout` (addends, if that is partial)."""
    loss_layout: Layout | None = None
    states: Mapping[str, Layout] = field(default_factory=dict)
    """Layout of each parameter's optimizer state (what `Update` works on)."""


# --- instructions: of one rank ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunPart:
    """`Compute` on one rank."""

    run: int
    what: Literal["forward", "backward", "inputs", "weights"]
    micro_batch: int
    saved: bool
    place: tuple[int, ...]
    """The rank's coordinates in the run's mesh."""


@dataclass(frozen=True)
class Collective:
    """One rank's call of a collective; all members call it in the same order."""

    kind: Literal["all-reduce", "reduce-scatter", "all-gather", "all-to-all"]
    group: tuple[int, ...]
    """Ranks in the order of their parts."""
    source: Buffer
    target: Buffer
    dim: int
    """Gathered (all-gather), scattered (reduce-scatter), or gathered by an all-to-all."""
    split: int
    """The dim that an all-to-all splits."""
    reduction: Reduction
    shape: tuple[int, ...]
    """Of this rank's part before."""
    dtype: str

    @property
    def received(self) -> int:
        """Elements this rank receives, with ring algorithms."""
        return ring(self.kind, len(self.group), math.prod(self.shape))


@dataclass(frozen=True)
class Piece:
    """Part of a tensor that goes from one rank to another (or stays)."""

    peer: int
    box: Box
    """Within this rank's own part: what is sent, or where it goes."""
    add: bool = False
    """Of a received piece: whether it is added to what is there (addends), instead of copied."""


@dataclass(frozen=True)
class Exchange:
    """A batch of messages that is posted as one: all sends and receives of one rank for one tensor."""

    source: Buffer | None
    target: Buffer | None
    """None on a rank that only sends."""
    sends: tuple[Piece, ...]
    receives: tuple[Piece, ...]
    keeps: tuple[tuple[Box, Box, bool], ...]
    """(from, to, add): what this rank has already."""
    shape: tuple[int, ...]
    """Of this rank's part after; () if it has none."""
    dtype: str
    tag: int
    """Equal on both ends, different for every exchange of a step."""


@dataclass(frozen=True)
class Local:
    """What a rank does to its own values, without computing an operator."""

    kind: Literal["load", "slice", "mask", "add", "seed", "accumulate", "update", "free"]
    sources: tuple[Buffer, ...] = ()
    targets: tuple[Buffer, ...] = ()
    box: Box = ()
    """Of `load` (in the whole tensor) and `slice` (in the part held)."""
    keep: bool = True
    """Of `mask`: whether this rank keeps its copy."""
    value: float = 0.0
    """Of `seed`."""


Instruction = RunPart | Collective | Exchange | Local
