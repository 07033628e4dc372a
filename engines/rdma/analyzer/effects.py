"""What a graph's operations do besides computing their results: change operands in place, and draw random numbers.

A data-flow graph says what must come before what by its edges alone. An operation that changes an operand, or that
draws from the machine's random generator, also has a place in an order that no edge shows; `Effects` finds it from the
schemas of the operations.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch.fx import Node

    from engines.rdma.analyzer.capture import Program

UNDECLARED = {"aten.native_batch_norm.default": (3, 4)}
"""Operations that change operands in training mode without saying so in their schema, with the operands' places."""


class Effects:
    """Which nodes share memory, and which of them change it."""

    def __init__(self, program: Program) -> None:
        self._place = {node: place for place, node in enumerate(program.nodes)}
        self._root: dict[Node, Node] = {}
        self._changers: dict[Node, list[Node]] = {}
        self._random: list[Node] = []
        changes: list[tuple[Node, Node]] = []
        for node in program.nodes:
            self._root[node] = node
            schema = getattr(node.target, "_schema", None)
            if node.op == "call_function" and schema is None:
                # Parts of a result, and arithmetic on sizes.
                for operand in node.all_input_nodes:
                    self._join(node, operand)
            if schema is None:
                continue
            if _is_random(node):
                self._random.append(node)
            for operand, writes in _aliased(node):
                self._join(node, operand)
                if writes:
                    changes.append((node, operand))
            changes.extend((node, operand) for operand in _undeclared(node))
        for changer, operand in changes:
            self._changers.setdefault(self._find(operand), []).append(changer)

    def changed_after(self, node: Node) -> Node | None:
        """The first node behind `node` in the graph that changes its value's memory in place."""
        here = self._place[node]
        changers = self._changers.get(self._find(node), ())
        return next((changer for changer in changers if self._place[changer] > here), None)

    def order(self, nodes: Iterable[Node]) -> Iterator[tuple[Node, Node]]:
        """Pairs of nodes of one machine that must keep the graph's order although no edge says so."""
        latest: dict[Node, Node] = {}
        generator: Node | None = None
        draws = set(self._random)
        for node in nodes:
            touched = {self._find(operand) for operand in (node, *node.all_input_nodes)}
            for root in touched & self._changers.keys():
                if root in latest:
                    yield latest[root], node
                latest[root] = node
            if node in draws:
                if generator is not None:
                    yield generator, node
                generator = node

    def _find(self, node: Node) -> Node:
        while self._root[node] is not node:
            self._root[node] = self._root[self._root[node]]
            node = self._root[node]
        return node

    def _join(self, one: Node, other: Node) -> None:
        self._root[self._find(one)] = self._find(other)


def _aliased(node: Node) -> Iterator[tuple[Node, bool]]:
    """Operands whose memory the result may share or the operation changes, and whether it changes them."""
    for operand, argument in _operands(node):
        if argument.alias_info is not None:
            for each in operand if isinstance(operand, (list, tuple)) else (operand,):
                if hasattr(each, "users"):
                    yield each, argument.alias_info.is_write


def _operands(node: Node) -> Iterator[tuple[object, object]]:
    arguments = node.target._schema.arguments
    yield from zip(node.args, arguments, strict=False)
    by_name = {argument.name: argument for argument in arguments}
    for name, operand in node.kwargs.items():
        yield operand, by_name[name]


def _undeclared(node: Node) -> Iterator[Node]:
    for place in UNDECLARED.get(str(node.target), ()):
        operand = node.args[place]
        if hasattr(operand, "users"):
            yield operand


def _is_random(node: Node) -> bool:
    import torch

    return torch.Tag.nondeterministic_seeded in node.target.tags
