"""What the actions are lowered to: a node for every rank, or an item for a whole mesh.

Both have the same three verbs, so that one walk over a program's actions (`lowering`) fills either. A handle names what
was added; what comes `after` it waits, on each rank, for what that rank did in it.

`OnRanks` takes any plan. `OnBox` needs meshes that are slices of one box (`box`), and is what scales to thousands of
ranks, because the emulator folds those that do the same.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from emulation import program as folded
from emulation.graph import Workload
from emulation.program import part_node

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from emulation.program import Block, Part
    from engines.superscaler.emulate.box import Box
    from engines.superscaler.layout import Mesh

STREAM = "main"
"""The queue on which a rank does all but what it sends to others."""


class Message(NamedTuple):
    """Bytes that go from one device to another in one action."""

    source: int
    target: int
    nbytes: int


class Target(Protocol):
    """A workload under construction."""

    def axes(self, mesh: Mesh, numbers: tuple[int, ...]) -> tuple[str, ...]:
        """What a collective along these axes of a mesh has in `Part.axes`."""

    def chain(self, mesh: Mesh, parts: tuple[Part, ...], after: Iterable[int], name: str) -> int:
        """Parts that every rank of a mesh does one after another."""

    def messages(self, messages: Sequence[Message], after: Iterable[int], name: str) -> list[int]:
        """Messages that start together."""

    def nodes(self, handle: int) -> range:
        """The nodes (or items) that were added as one."""


class OnRanks:
    """A `graph.Workload` with a node for every rank and part.

    Args:
        devices: names of the plan's devices.
        name: of the workload.
    """

    def __init__(self, devices: Mapping[int, str], name: str = "") -> None:
        self.work = Workload(name)
        self._devices = devices
        self._last: list[dict[int, int]] = []
        """For each handle: rank -> its last node."""
        self._nodes: list[range] = []
        self._groups: dict[tuple[str, ...], tuple[tuple[int, ...], ...]] = {}

    def axes(self, mesh: Mesh, numbers: tuple[int, ...]) -> tuple[str, ...]:
        """See `Target`: names by which the groups are found again."""
        groups = mesh.groups(numbers)
        names = (repr(groups),)
        self._groups[names] = groups
        return names

    def chain(self, mesh: Mesh, parts: tuple[Part, ...], after: Iterable[int], name: str) -> int:
        """See `Target`."""
        begin = len(self.work.nodes)
        earlier = list(after)
        reached = {rank: self._before(earlier, rank) for rank in mesh.devices}
        alone = tuple((rank,) for rank in mesh.devices)
        for part in parts:
            for group in self._groups[part.axes] if part.kind == "collective" else alone:
                waits = sorted({node for rank in group for node in reached[rank]})
                devices = tuple(self._devices[rank] for rank in group)
                number = self.work.append(part_node(part, devices, STREAM, name), waits)
                for rank in group:
                    reached[rank] = [number]
        return self._added({rank: max(nodes) for rank, nodes in reached.items() if nodes}, begin)

    def messages(self, messages: Sequence[Message], after: Iterable[int], name: str) -> list[int]:
        """See `Target`."""
        earlier, made = list(after), []
        for source, target, nbytes in messages:
            begin = len(self.work.nodes)
            node = self.work.transfer(
                self._devices[source],
                self._devices[target],
                nbytes,
                after=self._before(earlier, source, target),
                name=name,
            )
            made.append(self._added({source: node, target: node}, begin))
        return made

    def nodes(self, handle: int) -> range:
        """See `Target`."""
        return self._nodes[handle]

    def _before(self, after: Sequence[int], *ranks: int) -> list[int]:
        return sorted({self._last[handle][rank] for handle in after for rank in ranks if rank in self._last[handle]})

    def _added(self, last: dict[int, int], begin: int) -> int:
        self._last.append(last)
        self._nodes.append(range(begin, len(self.work.nodes)))
        return len(self._last) - 1


class OnBox:
    """A `program.Program` over the box of a plan's meshes.

    Args:
        box: that all meshes are slices of.
        devices: names of the plan's devices.
        name: of the program.
        even: whether messages that set every rank apart (a tied embedding's gradient, scattered from one end of a
            pipeline to the other) go to the ranks at the senders' own places instead, where every rank sends and
            receives as much as before. The ranks then stay alike, so that a thousand of them can be folded.
    """

    def __init__(self, box: Box, devices: Mapping[int, str], name: str = "", *, even: bool = False) -> None:
        self._even = even
        axes = tuple(zip(box.names, box.sizes, strict=True))
        self.work = folded.Program(folded.Mesh(axes, tuple(devices[number] for number in box.devices)), name)
        self._box = box
        self._position = {device: number for number, device in enumerate(box.devices)}
        self._places: dict[Mesh, tuple[Block, tuple[tuple[str, ...], ...]]] = {}
        self._routes: dict[tuple[Message, ...], list[tuple[Block, Block, int]]] = {}

    def axes(self, mesh: Mesh, numbers: tuple[int, ...]) -> tuple[str, ...]:
        """See `Target`."""
        _, made_of = self._place(mesh)
        return tuple(name for number in numbers for name in made_of[number])

    def chain(self, mesh: Mesh, parts: tuple[Part, ...], after: Iterable[int], name: str) -> int:
        """See `Target`."""
        return self.work.chain(self._place(mesh)[0], parts, after=after, name=name, stream=STREAM)

    def messages(self, messages: Sequence[Message], after: Iterable[int], name: str) -> list[int]:
        """See `Target`: messages that differ only by a shift along some axes of the box become one item."""
        key, earlier = tuple(messages), list(after)
        if key not in self._routes:
            self._routes[key] = self._between(self._evenly(key) if self._even else key)
        return [
            self.work.transfer(source, target, nbytes, after=earlier, name=name)
            for source, target, nbytes in self._routes[key]
        ]

    def nodes(self, handle: int) -> range:
        """See `Target`."""
        return range(handle, handle + 1)

    def _place(self, mesh: Mesh) -> tuple[Block, tuple[tuple[str, ...], ...]]:
        if mesh not in self._places:
            there = self._box.place(mesh)
            self._places[mesh] = (self.work.mesh.block(**dict(there.fixed)), there.axes)
        return self._places[mesh]

    def _evenly(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        """As many bytes from and to every rank, each to the one at its own place; or as they are, if they differ."""
        sent: Counter[int] = Counter()
        received: Counter[int] = Counter()
        for source, target, nbytes in messages:
            sent[source] += nbytes
            received[target] += nbytes
        equal = len({*sent.values(), *received.values()}) == 1 and len(sent) == len(received)
        if not equal or sent.keys() & received.keys():
            return messages
        ends = zip(sorted(sent), sorted(received), strict=True)
        return tuple(Message(source, target, sent[source]) for source, target in ends)

    def _between(self, messages: tuple[Message, ...]) -> list[tuple[Block, Block, int]]:
        ends = np.array([[self._position[m.source], self._position[m.target]] for m in messages]).reshape(-1, 2)
        sizes = np.array([m.nbytes for m in messages])
        free: list[str] = []
        for name, stride, length in zip(self._box.names, self._box.strides, self._box.sizes, strict=True):
            digit = ends // stride % length
            if (digit[:, 0] != digit[:, 1]).any():
                continue
            # The same messages at every place along the axis: one stands for all.
            base = ends - (digit * stride)
            at = [_rows(base[digit[:, 0] == place], sizes[digit[:, 0] == place]) for place in range(length)]
            if any(rows != at[0] for rows in at):
                continue
            here = digit[:, 0] == 0
            ends, sizes = ends[here], sizes[here]
            free.append(name)
        return [
            (self._block(source, free), self._block(target, free), nbytes)
            for (source, target), nbytes in zip(ends.tolist(), sizes.tolist(), strict=True)
        ]

    def _block(self, position: int, free: Sequence[str]) -> Block:
        box = self._box
        fixed = {
            name: position // stride % length
            for name, stride, length in zip(box.names, box.strides, box.sizes, strict=True)
            if name not in free
        }
        return self.work.mesh.block(**fixed)


def _rows(ends: np.ndarray, sizes: np.ndarray) -> list[tuple[int, ...]]:
    return sorted(map(tuple, np.column_stack([ends, sizes]).tolist()))
