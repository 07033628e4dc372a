"""Which machine runs which node of a graph.

A placement is a function from a node to a machine's name. `assign` completes it: parts of a result are where the result
is, and constants are everywhere. `parameter_server` and `pipeline` are the two placements of the literature; anything
else is a function of the user's.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from engines.rdma.analyzer.capture import Phase, Program, Role, UnsupportedGraph, tag

if TYPE_CHECKING:
    from torch.fx import Node

Placement = Callable[["Node"], str | None]


class UnplacedNodes(UnsupportedGraph):
    """Nodes for which a placement named no machine."""


def is_everywhere(node: Node, program: Program) -> bool:
    """Whether every machine holds this value from the start: constants, and the graph's own attributes."""
    return node.op == "get_attr" or node.name in _constants(program)


def assign(program: Program, placement: Placement) -> dict[Node, str]:
    """The machine of every node that runs on one.

    Raises:
        UnplacedNodes: with their names.
    """
    constants, found, missing = _constants(program), {}, []
    for node in program.nodes:
        if node.op in ("get_attr", "output") or node.name in constants:
            continue
        machine = found.get(node.args[0]) if node.target is operator.getitem else placement(node)
        if machine is None:
            missing.append(node.name)
        else:
            found[node] = machine
    if missing:
        raise UnplacedNodes(f"no machine for {', '.join(missing)}")
    return found


def parameter_server(program: Program, *, server: str = "server", worker: str = "worker{}") -> Placement:
    """Parameters and the sum of gradients on a server, everything else on the replica's worker.

    Args:
        program: from `capture.joint`.
        server: its machine.
        worker: machine of a replica; `{}` becomes its number.
    """
    parameters = {each.node for each in program.inputs if each.role is Role.PARAMETER}

    def place(node: Node) -> str | None:
        known = tag(node)
        if known is None:
            return None
        if node.name in parameters or known.phase is Phase.REDUCE:
            return server
        return worker.format(known.replica)

    return place


def pipeline(program: Program, stages: Mapping[str, str]) -> Placement:
    """Modules on machines, with what differentiates them.

    A node outside every module named, and a number (the size of a tensor), follows its first operand, an input its
    first user.

    Args:
        program: from `capture.forward` or `capture.joint`.
        stages: path of a module -> machine; the longest path that matches counts.
    """
    found: dict[Node, str] = {}
    forward_of: dict[tuple[int, str], str] = {}

    def of_module(path: str) -> str | None:
        matching = [prefix for prefix in stages if path == prefix or path.startswith(f"{prefix}.") or not prefix]
        return stages[max(matching, key=len)] if matching else None

    numbers = [node for node in program.nodes if _is_number(node)]
    for node in program.nodes:
        known = tag(node)
        if known is None or node.op in ("placeholder", "output") or node in numbers:
            continue
        origin = (known.replica, known.operation)
        machine = of_module(known.module) if known.operation else None
        if machine is None and known.phase is Phase.BACKWARD:
            machine = forward_of.get(origin)
        if machine is None:
            machine = next((found[each] for each in node.all_input_nodes if each in found), None)
        if machine is not None:
            found[node] = machine
            if known.phase is Phase.FORWARD and known.operation:
                forward_of[origin] = machine
    for node in reversed(program.nodes):
        if node not in found and node not in numbers:
            machine = next((found[user] for user in node.users if user in found), None)
            if machine is not None:
                found[node] = machine
    for node in numbers:
        machine = next((found[each] for each in node.all_input_nodes if each in found), None)
        if machine is not None:
            found[node] = machine
    return found.get


def _is_number(node: Node) -> bool:
    """Whether a node computes a size, or another number, and no tensor."""
    value = node.meta.get("val")
    return node.op == "call_function" and not isinstance(value, (tuple, list)) and not hasattr(value, "shape")


def _constants(program: Program) -> frozenset[str]:
    return frozenset(each.node for each in program.inputs if each.role is Role.CONSTANT)
