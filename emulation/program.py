"""Programs over a mesh of ranks: a workload graph whose nodes stand for many ranks at once.

Parallel training is the same few instructions on thousands of ranks, laid out in a *mesh* with named axes (`pp`, `dp`,
`tp`). An item of a `Program` says once what all ranks of a *block* (a slice of the mesh) do::

    mesh = Mesh.over(profile, {"pp": 8, "dp": 16, "tp": 8})
    program = Program(mesh)
    first, second = mesh.block(pp=0), mesh.block(pp=1)
    layer = [Part.compute(2e12, dtype="bf16"), Part.collective("tp", "all-reduce", 2**24)]
    forward = program.chain(first, layer * 12)
    program.transfer(first, second, 2**22, after=[forward])

What it means is defined by `expand`: the same as a `graph.Workload`, with a node for each rank and part. That is the
slow, obvious reference; the evaluators work on the program itself, folded (`evaluate.folding`) or with the ranks as
the axis of an array (`evaluate.ranks`), and give the same picoseconds.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from emulation import layout
from emulation.graph import Node, Workload, WorkloadError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from emulation.figures import Grade
    from emulation.graph import Op
    from emulation.profile import Profile

    Ranks = NDArray[np.int64]


@dataclass(frozen=True)
class Mesh:
    """Ranks in a box with named axes, the last one fastest; each rank is a device."""

    axes: tuple[tuple[str, int], ...]
    devices: tuple[str, ...]
    """Of each rank."""

    def __post_init__(self) -> None:
        wrong = [f"{name} = {size}" for name, size in self.axes if size < 1]
        if wrong:
            raise WorkloadError(f"an axis has at least one rank; not {', '.join(wrong)}")
        if math.prod(size for _, size in self.axes) != len(self.devices):
            raise WorkloadError(f"axes {dict(self.axes)} are not a box of {len(self.devices)} devices")
        if len(set(self.devices)) != len(self.devices):
            raise WorkloadError("a mesh has each device once")

    @classmethod
    def over(cls, profile: Profile, axes: Mapping[str, int]) -> Mesh:
        """A mesh that fills the accelerators of a cluster host by host; without any, its hosts' own processors.

        Raises:
            WorkloadError: the cluster has fewer than the mesh needs.
        """
        there = layout.devices(profile) or layout.processors(profile)
        size = math.prod(axes.values())
        if size > len(there):
            wanted = " x ".join(f"{name} {count}" for name, count in axes.items())
            raise WorkloadError(f"{wanted} needs {size:,} devices; profile {profile.name!r} has {len(there):,}")
        return cls(tuple(axes.items()), tuple(there[:size]))

    @property
    def size(self) -> int:
        """How many ranks."""
        return len(self.devices)

    def block(self, **fixed: int) -> Block:
        """The ranks that have these places on these axes (`pp=3`), in mesh order.

        Raises:
            WorkloadError: no such axis or place; the message has the nearest name.
        """
        sizes = dict(self.axes)
        for name, place in fixed.items():
            if name not in sizes:
                raise WorkloadError(f"the mesh has no axis {name!r}{_nearest(name, sizes)}")
            if not 0 <= place < sizes[name]:
                raise WorkloadError(f"axis {name!r} has places 0 to {sizes[name] - 1}, not {place}")
        return Block(self, tuple(sorted(fixed.items())))


@dataclass(frozen=True)
class Block:
    """A slice of a mesh: the ranks with some axes fixed. Equal slices are equal, whoever made them."""

    mesh: Mesh = field(compare=False, repr=False)
    fixed: tuple[tuple[str, int], ...]

    @cached_property
    def axes(self) -> tuple[tuple[str, int], ...]:
        """The axes that are left, outermost first."""
        taken = dict(self.fixed)
        return tuple((name, size) for name, size in self.mesh.axes if name not in taken)

    @cached_property
    def ranks(self) -> Ranks:
        """The ranks, rising; shape [size]."""
        taken = dict(self.fixed)
        box = np.arange(self.mesh.size).reshape([size for _, size in self.mesh.axes])
        return box[tuple(taken.get(name, slice(None)) for name, _ in self.mesh.axes)].reshape(-1)

    @property
    def size(self) -> int:
        """How many ranks."""
        return math.prod(size for _, size in self.axes)

    def groups(self, axes: Sequence[str]) -> Ranks:
        """Positions in the block, one row for each group along `axes`; shape [groups, ranks of a group].

        Raises:
            WorkloadError: an axis that the block does not have.
        """
        names = [name for name, _ in self.axes]
        for name in axes:
            if name not in names:
                raise WorkloadError(f"a block with {dict(self.fixed)} has no axis {name!r}{_nearest(name, names)}")
        places = np.arange(self.size).reshape([size for _, size in self.axes])
        last = [names.index(name) for name in axes]
        moved = np.moveaxis(places, last, range(len(names) - len(last), len(names)))
        return moved.reshape(-1, math.prod(dict(self.axes)[name] for name in axes))


@dataclass(frozen=True)
class Part:
    """One thing that every rank of a block does; see the methods of `graph.Workload` for the fields."""

    kind: Literal["compute", "host", "collective"]
    name: str = ""
    flops: float = 0.0
    nbytes: int = 0
    dtype: str = ""
    family: str = ""
    shape: tuple[int, ...] = ()
    seconds: float = 0.0
    grade: Grade = "prior"
    op: Op | Literal[""] = ""
    axes: tuple[str, ...] = ()
    """Axes of the block along which the ranks of one collective lie."""

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        # Long chains of few distinct parts are looked up often; the generated hash would be made anew each time.
        return hash((self.kind, self.name, self.flops, self.nbytes, self.seconds, self.op, self.axes))

    @classmethod
    def compute(
        cls,
        flops: float,
        nbytes: int = 0,
        *,
        dtype: str = "fp32",
        family: str = "",
        shape: Sequence[int] = (),
        name: str = "",
    ) -> Part:
        """A kernel on every rank."""
        return cls("compute", name, flops, nbytes, dtype, family, tuple(shape))

    @classmethod
    def host(cls, seconds: float, *, grade: Grade = "prior", name: str = "") -> Part:
        """A known time on every rank."""
        return cls("host", name, seconds=seconds, grade=grade)

    @classmethod
    def collective(cls, axes: str | Sequence[str], op: Op, nbytes: int, *, name: str = "") -> Part:
        """A collective in every group along an axis, or several."""
        return cls("collective", name, nbytes=nbytes, op=op, axes=(axes,) if isinstance(axes, str) else tuple(axes))


Kind = Literal["chain", "transfer", "alloc", "free"]


@dataclass(frozen=True)
class Item:
    """One node of a program."""

    id: int
    kind: Kind
    block: Block
    stream: str
    after: tuple[int, ...]
    name: str = ""
    parts: tuple[Part, ...] = ()
    """Of a chain: done one after another on the stream."""
    to: Block | None = None
    """Of a transfer: where the ranks of `block` send to, each to the one at its own place."""
    nbytes: int = 0
    """Of a transfer or an allocation, for each rank."""
    frees: int = -1


@dataclass
class Program:
    """A program under construction, and when it is done an input of `simulate`.

    `after` names items. A rank of an item waits for what *it* did in those items (in a transfer: for what either end
    did); ranks that had no part in one do not wait for it.
    """

    mesh: Mesh
    name: str = ""
    items: list[Item] = field(default_factory=list)
    _checked: dict[tuple[object, ...], tuple[Part, ...]] = field(default_factory=dict, repr=False)

    def chain(
        self, block: Block, parts: Sequence[Part], *, after: Iterable[int] = (), name: str = "", stream: str = "main"
    ) -> int:
        """Parts that every rank of a block does one after another, with nothing else in between on that stream."""
        if not parts:
            raise WorkloadError(f"chain {name!r} has no parts")
        # Training repeats itself: equal parts of equal blocks are checked once, and kept once.
        key = (block, tuple(parts))
        known = self._checked.get(key)
        if known is None:
            for part in dict.fromkeys(key[1]):
                _check_part(part, block, self.mesh)
            known = self._checked[key] = key[1]
        return self._add("chain", block, stream, after, name, parts=known)

    def compute(
        self,
        block: Block,
        flops: float,
        nbytes: int = 0,
        *,
        dtype: str = "fp32",
        family: str = "",
        shape: Sequence[int] = (),
        after: Iterable[int] = (),
        name: str = "",
        stream: str = "main",
    ) -> int:
        """One kernel on every rank of a block."""
        part = Part.compute(flops, nbytes, dtype=dtype, family=family, shape=shape, name=name)
        return self.chain(block, [part], after=after, name=name, stream=stream)

    def host(
        self,
        block: Block,
        seconds: float,
        *,
        after: Iterable[int] = (),
        name: str = "",
        stream: str = "main",
        grade: Grade = "prior",
    ) -> int:
        """A known time on every rank of a block."""
        return self.chain(block, [Part.host(seconds, grade=grade, name=name)], after=after, name=name, stream=stream)

    def collective(
        self,
        block: Block,
        axes: str | Sequence[str],
        op: Op,
        nbytes: int,
        *,
        after: Iterable[int] = (),
        name: str = "",
        stream: str = "comm",
    ) -> int:
        """One collective in every group of a block along an axis (or several)."""
        part = Part.collective(axes, op, nbytes, name=name)
        return self.chain(block, [part], after=after, name=name, stream=stream)

    def transfer(
        self, block: Block, to: Block, nbytes: int, *, after: Iterable[int] = (), name: str = "", stream: str = ""
    ) -> int:
        """From each rank of a block to the one at the same place in another."""
        key = (block, to)
        if key not in self._checked and (block.size != to.size or np.intersect1d(block.ranks, to.ranks).size):
            raise WorkloadError(f"transfer {name!r}: needs two blocks of equal size that share no rank")
        self._checked[key] = ()
        return self._add("transfer", block, stream, after, name, to=to, nbytes=_whole(nbytes, name))

    def alloc(self, block: Block, nbytes: int, *, after: Iterable[int] = (), name: str = "") -> int:
        """Take memory on every rank of a block, until a `free` of this item or to the end."""
        return self._add("alloc", block, "", after, name, nbytes=_whole(nbytes, name))

    def free(self, allocation: int, *, after: Iterable[int] = (), name: str = "") -> int:
        """Give back what the item `allocation` took."""
        if not 0 <= allocation < len(self.items) or self.items[allocation].kind != "alloc":
            raise WorkloadError(f"free {name!r}: item {allocation} is not an alloc")
        taken = self.items[allocation]
        earlier = (allocation, *after)
        return self._add("free", taken.block, "", earlier, name, nbytes=taken.nbytes, frees=allocation)

    def nodes(self) -> int:
        """How many nodes `expand` would make."""
        return sum(
            item.block.size * sum(1 if part.kind != "collective" else 0 for part in item.parts)
            + sum(len(item.block.groups(part.axes)) for part in item.parts if part.kind == "collective")
            + (0 if item.parts else item.block.size)
            for item in self.items
        )

    def expand(self) -> Workload:
        """The same as a workload with a node for each rank and part; the definition of what a program means."""
        work = Workload(self.name)
        last: list[dict[int, int]] = []
        """For each item: rank -> its last node."""
        for item in self.items:
            last.append(_expanded(self, item, work, last))
        return work

    def _add(self, kind: Kind, block: Block, stream: str, after: Iterable[int], name: str, **rest: Any) -> int:
        earlier = tuple(dict.fromkeys(after))
        for number in earlier:
            if not 0 <= number < len(self.items):
                raise WorkloadError(f"{kind} {name!r}: there is no item {number} to come after")
        if block.mesh is not self.mesh:
            raise WorkloadError(f"{kind} {name!r}: its block is of another mesh")
        self.items.append(Item(len(self.items), kind, block, stream, earlier, name, **rest))
        return len(self.items) - 1


def part_node(part: Part, devices: tuple[str, ...], stream: str, name: str = "") -> Node:
    """A part on these devices, as a node without number and predecessors: what a cost model is asked about."""
    rest = (part.nbytes, part.seconds, part.flops, part.dtype, part.family, part.shape, part.op)
    return Node(-1, part.kind, part.name or name, devices, stream, (), *rest, grade=part.grade)


def _expanded(program: Program, item: Item, work: Workload, last: list[dict[int, int]]) -> dict[int, int]:
    devices = program.mesh.devices
    ranks: list[int] = item.block.ranks.tolist()

    def before(*places: int) -> list[int]:
        return sorted({last[number][place] for number in item.after for place in places if place in last[number]})

    if item.kind == "transfer":
        assert item.to is not None
        made: dict[int, int] = {}
        for source, target in zip(ranks, item.to.ranks.tolist(), strict=True):
            made[source] = made[target] = work.transfer(
                devices[source],
                devices[target],
                item.nbytes,
                after=before(source, target),
                name=item.name,
                stream=item.stream,
            )
        return made
    if item.kind == "alloc":
        return {r: work.alloc(devices[r], item.nbytes, after=before(r), name=item.name) for r in ranks}
    if item.kind == "free":
        return {r: work.free(last[item.frees][r], after=before(r), name=item.name) for r in ranks}
    reached = {rank: before(rank) for rank in ranks}
    for part in item.parts:
        for group in _groups(part, item.block):
            places = [ranks[place] for place in group]
            after = sorted({number for place in places for number in reached[place]})
            node = part_node(part, tuple(devices[place] for place in places), item.stream, item.name)
            number = work.append(node, after)
            reached |= {place: [number] for place in places}
    return {rank: numbers[0] for rank, numbers in reached.items()}


def _groups(part: Part, block: Block) -> list[list[int]]:
    """Positions in the block that do the part together."""
    groups: list[list[int]] = (
        block.groups(part.axes).tolist() if part.kind == "collective" else [[place] for place in range(block.size)]
    )
    return groups


def _check_part(part: Part, block: Block, mesh: Mesh) -> None:
    if part.kind == "collective":
        block.groups(part.axes)
    # The same checks as for a node: made on a workload of its own.
    trial, device = Workload(), mesh.devices[0]
    match part.kind:
        case "compute":
            trial.compute(device, part.flops, part.nbytes, dtype=part.dtype, name=part.name)
        case "host":
            trial.host(device, part.seconds, name=part.name)
        case "collective":
            trial.collective(cast("Op", part.op), [device], part.nbytes, name=part.name)


def _whole(nbytes: int, name: str) -> int:
    if nbytes < 0 or nbytes != int(nbytes):
        raise WorkloadError(f"{name!r}: {nbytes} is not a number of bytes")
    return int(nbytes)


def _nearest(word: str, known: Iterable[str]) -> str:
    names = list(known)
    near = difflib.get_close_matches(word, names, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(names) or 'none'}"
