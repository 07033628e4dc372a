"""The intra-operator problem of a graph (or a part of it) on one mesh, as tables of seconds and bytes.

Equal operators of different layers get the same table objects, which is how one solve serves all of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from engines.superscaler.cost import signature
from engines.superscaler.fusion import differentiated
from engines.superscaler.search import lineage
from engines.superscaler.search.elimination import Problem
from engines.superscaler.search.options import options
from engines.superscaler.search.reshard import Redistribution
from engines.superscaler.search.weights import keepings

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from numpy.typing import NDArray

    from engines.superscaler.cost import Costs, OperatorCost
    from engines.superscaler.graph import Graph, Op
    from engines.superscaler.layout import Mesh
    from engines.superscaler.precision import Precision
    from engines.superscaler.search.constraints import Space
    from engines.superscaler.search.lineage import Unit
    from engines.superscaler.search.options import Option
    from engines.superscaler.search.weights import Keeping

    Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Setting:
    """What is weighed against what."""

    micro_batches: int = 1
    in_flight: int = 1
    """Micro-batches whose activations a stage keeps at once."""
    recompute: bool = False
    """Whether layers keep only what enters them."""
    price: float = 0.0
    """Seconds per step that a byte of a device's memory is worth."""


@dataclass(frozen=True, eq=False)
class Node:
    """An operator's options, and for each what it takes; equal for equal operators."""

    options: tuple[Option, ...]
    forward: Floats
    backward: Floats
    keepings: tuple[tuple[tuple[Keeping, ...], ...], ...]
    """For every option and parameter it owns, the ways to keep it."""
    kept: Mapping[tuple[str, int], Floats]
    """Bytes of a device's part of each input and output: ("input", 0) -> one per option."""
    extra: Floats
    """Bytes kept beside tensors."""
    workspace: Floats
    saved: tuple[str, ...]
    number: int


@dataclass(frozen=True, eq=False)
class Edge:
    """What it takes to get a tensor from one operator to another; shape [options, options]."""

    forward: Floats
    backward: Floats
    copy: Floats
    """Bytes of a second copy that the consumer keeps, where its layout is another one."""


@dataclass
class Bench:
    """Everything about a graph that does not depend on a mesh.

    Args:
        graph: in the dtypes that are trained in.
        costs: of operators and communication.
        space: what is allowed.
        precision: for what a parameter takes.
    """

    graph: Graph
    costs: Costs
    space: Space
    precision: Precision
    meshes: dict[Mesh, Tables] = field(default_factory=dict)
    holding: dict[tuple[frozenset[str], bool], dict[str, list[tuple[str, int]]]] = field(default_factory=dict)
    crossings: dict[tuple[int, ...], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.batch = lineage.batch(self.graph)
        self.units: tuple[Unit, ...] = lineage.units(self.graph)
        self.unit_of = {op: number for number, unit in enumerate(self.units) for op in unit.ops}
        self.active = differentiated(self.graph)
        """Operators that the loss's gradient flows through: others keep nothing and are never computed again."""
        numbers: dict[str, int] = {}
        self.alike: dict[str, int] = {}
        """Operator -> number of its class: equal signature, batch and rules."""
        seen: set[str] = set()
        self.owned: dict[str, tuple[int, ...]] = {}
        """Operator -> which of its inputs are parameters (and buffers) that it is the first to use."""
        for op in self.graph.ops:
            rules = [number for number, rule in enumerate(self.space.rules) if rule.matches(op)]
            own = []
            for number, name in enumerate(op.inputs):
                if self.graph.tensors[name].role in ("parameter", "buffer") and name not in seen:
                    seen.add(name)
                    own.append(number)
            self.owned[op.name] = tuple(own)
            key = f"{signature(self.graph, op)}|{self.batch[op.name]}|{rules}|{own}|{op.name in self.active}"
            self.alike[op.name] = numbers.setdefault(key, len(numbers))

    def tables(self, mesh: Mesh) -> Tables:
        """Of one mesh, made once."""
        if mesh not in self.meshes:
            self.meshes[mesh] = Tables(self, mesh)
        return self.meshes[mesh]

    @cached_property
    def root(self) -> Mapping[str, str]:
        """Tensor -> the one whose memory it is: a view has that of what it views."""
        found: dict[str, str] = {}
        for op in self.graph.ops:
            first = op.inputs[0] if op.inputs else ""
            if first and len(op.outputs) == 1 and self.is_view(op):
                found[op.outputs[0]] = found.get(first, first)
        return found

    def is_view(self, op: Op) -> bool:
        """Whether it touches no memory."""
        cost = self.cost(op, {})
        return cost.forward == 0.0 and cost.workspace == 0

    def again(self, op: str, *, recompute: bool) -> bool:
        """Whether an operator is computed once more in the backward pass."""
        return recompute and op in self.active and self.units[self.unit_of[op]].is_layer

    def cost(self, op: Op, degrees: Mapping[str, int]) -> OperatorCost:
        """Of one part."""
        found = self.costs.operator(self.graph, op, degrees)
        return found if op.name in self.active else replace(found, backward=0.0, saved=(), saved_extra=0)

    def holders(self, ops: Collection[str], *, recompute: bool) -> dict[str, list[tuple[str, int]]]:
        """See `_held`; kept, since every solution asks."""
        key = (frozenset(ops), recompute)
        if key not in self.holding:
            self.holding[key] = self._held(ops, recompute=recompute)
        return self.holding[key]

    def _held(self, ops: Collection[str], *, recompute: bool) -> dict[str, list[tuple[str, int]]]:
        """Operator -> the tensors of it whose bytes count as its own, as ("input" or "output", number).

        A tensor that several operators keep is counted once: with the operator that makes it, or with the first one
        that reads it if it comes from elsewhere. With `recompute`, layers keep only what enters them.
        """
        graph, chosen = self.graph, set(ops)
        wanted: dict[str, None] = {}
        for op in graph.ops:
            if op.name not in chosen or op.name not in self.active:
                continue
            if self.again(op.name, recompute=recompute):
                names = [name for name in op.inputs if self._enters(name, op.name)]
            else:
                names = list(self.cost(op, {}).saved)
            for name in names:
                if graph.tensors[name].role not in ("parameter", "buffer"):
                    wanted.setdefault(self.root.get(name, name))
        found: dict[str, list[tuple[str, int]]] = {}
        for op in graph.ops:
            if op.name not in chosen:
                continue
            for kind, names in (("output", op.outputs), ("input", op.inputs)):
                for number, name in enumerate(names):
                    base = name if kind == "output" else self.root.get(name, name)
                    if base in wanted and (kind == "output" or graph.producer.get(base) not in chosen):
                        del wanted[base]
                        found.setdefault(op.name, []).append((kind, number))
        return found

    def _enters(self, tensor: str, op: str) -> bool:
        producer = self.graph.producer.get(tensor)
        return producer is None or self.unit_of[producer] != self.unit_of[op]


class Tables:
    """Nodes and edges of a graph on one mesh."""

    def __init__(self, bench: Bench, mesh: Mesh) -> None:
        self.bench, self.mesh = bench, mesh
        self._nodes: dict[int, Node] = {}
        self._edges: dict[tuple[object, ...], Edge] = {}
        self._redistributions: dict[tuple[object, ...], Redistribution] = {}
        self._weighed: dict[tuple[object, ...], Floats] = {}

    def node(self, op: Op) -> Node:
        """Of an operator."""
        number = self.bench.alike[op.name]
        if number not in self._nodes:
            self._nodes[number] = self._made(op, number)
        return self._nodes[number]

    def _made(self, op: Op, number: int) -> Node:
        bench, mesh, graph = self.bench, self.mesh, self.bench.graph
        found = options(op, mesh.shape, bench.space, bench.batch[op.name])
        prices = [bench.cost(op, one.degrees) for one in found]

        def held(code: tuple[int, ...], name: str) -> float:
            parts = math.prod(size for state, size in zip(code, mesh.shape, strict=True) if state >= 0)
            return graph.tensors[name].nbytes / parts

        kept = {
            ("output", place): np.array([held(one.outputs[place], name) for one in found])
            for place, name in enumerate(op.outputs)
        } | {
            ("input", place): np.array([held(one.inputs[place], name) for one in found])
            for place, name in enumerate(op.inputs)
        }
        ways = tuple(
            tuple(
                keepings(
                    graph.tensors[op.inputs[place]],
                    one.inputs[place],
                    one.gradients[place],
                    mesh,
                    bench.costs,
                    bench.precision,
                    bench.space.zero,
                )
                for place in bench.owned[op.name]
            )
            for one in found
        )
        return Node(
            found,
            np.array([price.forward for price in prices]),
            np.array([price.backward for price in prices]),
            ways,
            kept,
            np.array([float(price.saved_extra) for price in prices]),
            np.array([float(price.workspace) for price in prices]),
            prices[0].saved,
            number,
        )

    def edge(self, source: Op, target: Op, tensor: str) -> Edge:
        """Of a tensor between its producer and one of its consumers, all its uses there together."""
        graph = self.bench.graph
        out = source.outputs.index(tensor)
        uses = tuple(place for place, name in enumerate(target.inputs) if name == tensor)
        left, right = self.node(source), self.node(target)
        key = (left.number, out, right.number, uses)
        if key not in self._edges:
            whole = graph.tensors[tensor]
            form = (whole.shape, whole.dtype)
            if form not in self._redistributions:
                self._redistributions[form] = Redistribution(whole.shape, whole.dtype, self.mesh, self.bench.costs)
            ways = self._redistributions[form]
            there = np.array([ways.index[one.outputs[out]] for one in left.options])
            wants = np.array([ways.index[one.wants[out]] for one in left.options])
            forward = np.zeros((len(left.options), len(right.options)))
            backward, copy = np.zeros_like(forward), np.zeros_like(forward)
            for number, place in enumerate(uses):
                needs = np.array([ways.index[one.inputs[place]] for one in right.options])
                comes = np.array([ways.index[one.gradients[place]] for one in right.options])
                if number == 0:
                    forward += ways.seconds[np.ix_(there, needs)]
                    if tensor in right.saved or target.inputs[place] in self.bench.cost(target, {}).saved:
                        copy += (there[:, None] != needs[None, :]) * right.kept["input", place][None, :]
                if whole.requires_grad and target.name in self.bench.active:
                    backward += ways.seconds[np.ix_(comes, wants)].T
            self._edges[key] = Edge(forward, backward, copy)
        return self._edges[key]

    def weighed(self, op: Op, held: tuple[tuple[str, int], ...], setting: Setting) -> Floats:
        """Seconds per step (with memory at its price) of every option of an operator."""
        node = self.node(op)
        again = self.bench.again(op.name, recompute=setting.recompute)
        key = (node.number, held, setting, again)
        if key not in self._weighed:
            passes = node.forward * (2 if again else 1) + node.backward
            kept = sum((node.kept[place] for place in held), np.zeros(len(node.options)))
            if not again:
                kept = kept + node.extra
            cost = setting.micro_batches * passes + setting.price * setting.in_flight * kept
            owned = [sum(min(_price(way, setting) for way in ways) for ways in one) for one in node.keepings]
            self._weighed[key] = cost + np.array(owned)
        return self._weighed[key]

    def joined(self, source: Op, target: Op, tensor: str, setting: Setting) -> Floats:
        """Seconds per step (with memory at its price) between two operators."""
        edge = self.edge(source, target, tensor)
        again = self.bench.again(target.name, recompute=setting.recompute)
        key = ("edge", id(edge), setting, again)
        if key not in self._weighed:
            seconds = setting.micro_batches * (edge.forward * (2 if again else 1) + edge.backward)
            copies = 0.0 if again else setting.price * setting.in_flight
            self._weighed[key] = seconds + copies * edge.copy
        return self._weighed[key]

    def problem(self, ops: Collection[str], setting: Setting) -> Problem:
        """Of these operators, in graph order."""
        graph, chosen, found = self.bench.graph, set(ops), Problem()
        # Tables of another price are of no use any more.
        self._weighed.clear()
        holders = self.bench.holders(chosen, recompute=setting.recompute)
        for op in graph.ops:
            if op.name not in chosen:
                continue
            table = self.weighed(op, tuple(holders.get(op.name, ())), setting)
            found.choices[op.name] = len(table)
            found.tables.append(((op.name,), table))
            for tensor in dict.fromkeys(op.inputs):
                producer = graph.producer.get(tensor)
                if producer in chosen:
                    table = self.joined(graph.by_name[producer], op, tensor, setting)
                    found.tables.append(((producer, op.name), table))
        return found


def _price(way: Keeping, setting: Setting) -> float:
    return way.once + setting.micro_batches * way.each + setting.price * way.nbytes


def cheapest(ways: tuple[Keeping, ...], setting: Setting) -> Keeping:
    """How to keep a parameter."""
    return min(ways, key=lambda way: (_price(way, setting), way.level))
