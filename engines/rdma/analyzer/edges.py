"""What crosses between machines: the edges of a divided graph, and how each is to be placed at its receiver.

An edge is one value that one machine produces and another needs, however many nodes need it there. Its shape decides
the placement protocol: *static* where every dimension is a number, so that the receiver can make room before the first
step, *dynamic* where one is symbolic (the rank is always known).

What travels is the memory of the tensor in the order in which it lies (`order`), with dimensions of stride zero sent
once (`repeated`): a transposed or expanded tensor needs no copy to be sent, and has the same strides at the receiver,
so that the kernels there take the same path as they would have on the producer's machine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from engines.rdma.analyzer.capture import Program, UnsupportedGraph
from engines.rdma.analyzer.effects import Effects
from engines.rdma.analyzer.partition import is_everywhere

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from torch.fx import Node


class Protocol(StrEnum):
    """How a tensor finds its place at the receiver."""

    STATIC = "static"
    DYNAMIC = "dynamic"


@dataclass(frozen=True)
class Edge:
    """One value on its way from one machine to another."""

    index: int
    """Place in the plan."""
    producer: str
    """Name of the node."""
    source: str
    """Machine of the producer."""
    target: str
    """Machine of the consumers."""
    consumers: tuple[str, ...]
    """Names of the nodes, in graph order; `output` where the value is a result."""
    dtype: str
    """As in `torch.<dtype>`; of a number, the type it travels as."""
    shape: tuple[int | str, ...]
    """A symbolic dimension is its expression."""
    itemsize: int
    order: tuple[int, ...]
    """The dimensions, outermost in memory first."""
    repeated: tuple[int, ...] = ()
    """Dimensions in which all elements are one; sent once."""
    scalar: bool = False
    """A number of Python's instead of a tensor."""

    @property
    def protocol(self) -> Protocol:
        """Static if all of its dimensions are known."""
        return Protocol.STATIC if all(isinstance(size, int) for size in self.shape) else Protocol.DYNAMIC

    @property
    def wire_shape(self) -> tuple[int | str, ...]:
        """What is sent: repeated dimensions once, outermost in memory first."""
        return tuple(1 if dim in self.repeated else self.shape[dim] for dim in self.order)

    @property
    def nbytes(self) -> int | None:
        """Bytes on the wire; None if dynamic."""
        sizes = [size for size in self.wire_shape if isinstance(size, int)]
        return math.prod(sizes) * self.itemsize if len(sizes) == len(self.shape) else None

    def to_wire(self, value: torch.Tensor) -> torch.Tensor:
        """A view of `value` in the order of the wire; contiguous if it lies in memory as the edge says."""
        for dim in self.repeated:
            value = value.narrow(dim, 0, 1)
        return value.permute(self.order)

    def from_wire(self, wire: torch.Tensor) -> torch.Tensor:
        """The tensor again: inverse of `to_wire`, without a copy."""
        value = wire.permute(sorted(range(len(self.order)), key=self.order.__getitem__))
        if not self.repeated:
            return value
        return value.expand([self.shape[dim] if dim in self.repeated else -1 for dim in range(value.dim())])

    def to_json(self) -> dict[str, Any]:
        """For records."""
        return {
            "producer": self.producer,
            "source": self.source,
            "target": self.target,
            "consumers": list(self.consumers),
            "dtype": self.dtype,
            "shape": list(self.shape),
            "placement": str(self.protocol),
            "bytes": self.nbytes,
        }


def find_edges(
    program: Program, machine_of: Mapping[Node, str], results: Mapping[str, str] | None = None
) -> tuple[Edge, ...]:
    """The edges of a divided graph, in the order of their producers.

    Args:
        program: the graph.
        machine_of: from `partition.assign`.
        results: machines at which outputs of the program (by name) are wanted; others stay where they are produced.

    Raises:
        UnsupportedGraph: an edge would carry something other than a tensor or a number, or a value that is changed in
            place later (what was sent and what is changed would be two things), or `results` names no output.
    """
    import torch

    wanted = _wanted(program, machine_of, results or {})
    effects = Effects(program)
    edges: list[Edge] = []
    for node in program.nodes:
        if node not in machine_of or is_everywhere(node, program):
            continue
        consumers: dict[str, list[str]] = {}
        for user in node.users:
            if user in machine_of and machine_of[user] != machine_of[node]:
                consumers.setdefault(machine_of[user], []).append(user.name)
        for machine in wanted.get(node, ()):
            consumers.setdefault(machine, []).append("output")
        value = node.meta.get("val")
        if not consumers or value is None:
            continue
        if (changer := effects.changed_after(node)) is not None:
            raise UnsupportedGraph(
                f"node {node.name!r} is sent from {machine_of[node]!r} to {', '.join(map(repr, consumers))} and "
                f"changed in place by {changer.name!r}: place them on one machine"
            )
        if not isinstance(value, (torch.Tensor, torch.SymInt, torch.SymFloat, torch.SymBool, int, float)):
            raise UnsupportedGraph(f"node {node.name!r}: {type(value).__name__} cannot be sent")
        for target, names in consumers.items():
            edges.append(_edge(len(edges), node.name, machine_of[node], target, names, value))
    return tuple(edges)


def result_nodes(program: Program) -> dict[str, Node]:
    """The node of every output, by the output's name; an output that is no node is left out."""
    from torch.fx import Node

    values = program.nodes[-1].args[0]
    return {name: node for name, node in zip(program.outputs, values, strict=True) if isinstance(node, Node)}


def _wanted(program: Program, machine_of: Mapping[Node, str], results: Mapping[str, str]) -> dict[Node, list[str]]:
    nodes = result_nodes(program)
    if unknown := sorted(set(results) - set(nodes)):
        raise UnsupportedGraph(f"no outputs {', '.join(unknown)}; there are {', '.join(nodes)}")
    wanted: dict[Node, list[str]] = {}
    for name, machine in results.items():
        machines = wanted.setdefault(nodes[name], [])
        if machine != machine_of.get(nodes[name], machine) and machine not in machines:
            machines.append(machine)
    return wanted


def _edge(index: int, producer: str, source: str, target: str, consumers: Sequence[str], value: Any) -> Edge:
    import torch

    if not isinstance(value, torch.Tensor):
        kinds = {torch.SymInt: "int64", int: "int64", bool: "bool", torch.SymBool: "bool"}
        dtype = kinds.get(type(value), "float64")
        itemsize = 1 if dtype == "bool" else 8
        return Edge(index, producer, source, target, tuple(consumers), dtype, (), itemsize, (), scalar=True)
    shape = tuple(_number(size) if _number(size) is not None else str(size) for size in value.shape)
    strides = [_hint(stride) for stride in value.stride()]
    static = all(isinstance(size, int) for size in shape)
    # A dimension that may have another size at every step cannot be rebuilt from one element.
    repeated = [
        dim for dim, size in enumerate(shape) if strides[dim] == 0 and static and isinstance(size, int) and size > 1
    ]
    order = sorted(range(len(shape)), key=lambda dim: (-strides[dim], dim))
    if not _is_dense([1 if dim in repeated else _hint(size) for dim, size in enumerate(value.shape)], strides, order):
        order, repeated = list(range(len(shape))), []
    dtype = str(value.dtype).removeprefix("torch.")
    return Edge(
        index, producer, source, target, tuple(consumers), dtype, shape, value.itemsize, tuple(order), tuple(repeated)
    )


def _is_dense(sizes: Sequence[int], strides: Sequence[int], order: Sequence[int]) -> bool:
    expected = 1
    for dim in reversed(order):
        if sizes[dim] == 1:
            continue
        if strides[dim] != expected:
            return False
        expected *= sizes[dim]
    return True


def _number(size: Any) -> int | None:
    """A size that is the same at every step, or None."""
    return size if isinstance(size, int) else size.node.maybe_as_int()


def _hint(size: Any) -> int:
    """A size of the step that was captured; only its relation to the others is used."""
    return size if isinstance(size, int) else int(size.node.hint)
