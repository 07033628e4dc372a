"""Where a model is cut into stages, layers and their parts: from the graph, without knowing the model."""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING

from engines.superscaler.operators import find
from harness.api import PlanError

if TYPE_CHECKING:
    from collections.abc import Sequence, Set

    from engines.superscaler.graph import Graph, Op

INTENSITY = 100.0
"""Operations in the time of moving a byte: what makes products and element-wise operators comparable (a V100 does
about 125 with tensor cores). Cuts need no better."""
_LAYER = re.compile(r"^(.*?\.\d+)(@\d+)?(?:\.([A-Za-z_]\w*)(@\d+)?)?")


def effort(graph: Graph, op: Op) -> float:
    """What an operator costs forward, in operations."""
    work = find(op.target).work(op, graph.tensors, {})
    return max(float(work.flops), INTENSITY * work.nbytes)


def cut(graph: Graph, ops: Sequence[Op], stages: int) -> tuple[tuple[str, ...], ...]:
    """Cut a sequence of operators into stages of equal effort, where the least has to be sent.

    Raises:
        PlanError: more stages than operators.
    """
    if not 1 <= stages <= len(ops):
        raise PlanError(f"{len(ops)} operators cannot be cut into {stages} stages; at most {len(ops)}")
    live = _live(graph, ops)
    places = range(1, len(ops))
    valleys = [
        p
        for p in places
        if (p == 1 or live[p] <= live[p - 1]) and (p == len(ops) - 1 or live[p] <= live[p + 1]) and live[p] > 0
    ]
    done = list(itertools.accumulate((effort(graph, op) for op in ops), initial=0.0))
    bounds = _balanced(done, valleys if len(valleys) >= stages - 1 else list(places), stages)
    return tuple(tuple(op.name for op in ops[a:b]) for a, b in itertools.pairwise((0, *bounds, len(ops))))


def _balanced(done: Sequence[float], places: Sequence[int], stages: int) -> list[int]:
    bounds: list[int] = []
    for number in range(1, stages):
        left = stages - 1 - number
        first = next((i for i, p in enumerate(places) if not bounds or p > bounds[-1]), len(places))
        choices = places[first : len(places) - left]
        target = done[-1] * number / stages
        bounds.append(min(choices, key=lambda place: (abs(done[place] - target), place)))
    return bounds


def _live(graph: Graph, ops: Sequence[Op]) -> list[int]:
    """Bytes that each place between two operators would have to be sent across."""
    place = {op.name: number for number, op in enumerate(ops)}
    change = [0] * (len(ops) + 1)
    for number, op in enumerate(ops):
        for tensor in op.outputs:
            readers = [place[reader] for reader in graph.consumers.get(tensor, ()) if reader in place]
            if readers and max(readers) > number:
                change[number + 1] += graph.tensors[tensor].nbytes
                change[max(readers) + 1] -= graph.tensors[tensor].nbytes
    return list(itertools.accumulate(change))


def layer(name: str) -> str:
    """The layer (one call of it) that an operator is in: `layers.3`, `blocks.0@2`; empty outside of any."""
    found = _LAYER.match(name)
    return f"{found[1]}{found[2] or ''}" if found else ""


def block(name: str) -> str:
    """The part of a layer that an operator is in (`layers.3.attention`); empty if it is in none."""
    found = _LAYER.match(name)
    if found is None or found[3] is None:
        return ""
    call = found[2] or found[4] or ""
    return f"{found[1]}.{found[3]}{call}"


def layers(ops: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Layer -> its operators among some, in order."""
    found: dict[str, list[str]] = {}
    for op in ops:
        if layer(op):
            found.setdefault(layer(op), []).append(op)
    return {name: tuple(members) for name, members in found.items()}


def call(name: str) -> int:
    """Which call of a module an operator is in: the number behind its first `@`, 0 in the first."""
    found = re.search(r"@(\d+)", name)
    return int(found[1]) if found else 0


def weights_of(graph: Graph, op: Op) -> Set[str]:
    """Parameters that an operator reads."""
    return {tensor for tensor in op.inputs if graph.tensors[tensor].role == "parameter"}
