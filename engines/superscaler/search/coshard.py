"""Co-shard: operators that a device does piece by piece, so that it never keeps more than one piece's activations.

A piece is a share of one identifier, on top of how the operator is split over devices. Consecutive operators of a layer
form a group if the identifier is handed on from one to the next and nothing has to be sent between them; each piece is
computed forward again and then backward before the next one. What lies between groups is recomputed as a whole.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from engines.superscaler.plan import Group
from engines.superscaler.search.options import option

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engines.superscaler.graph import Op
    from engines.superscaler.search.intra import Solution
    from engines.superscaler.search.options import Option
    from engines.superscaler.search.problem import Bench

SHORTEST = 3
"""Operators of a group."""
WORTH = 0.05
"""Part of a device's memory that a layer must need at once for its pieces to be worth a look."""


def sharded(solution: Solution, parts: int) -> Solution | None:
    """A solution that recomputes, with its layers' operators in pieces where they can be; None where none can."""
    bench = solution.tables.bench
    everything = bench.holders(list(solution.chosen), recompute=False)
    known: dict[tuple[object, ...], tuple[tuple[int, int, tuple[str, ...]], ...]] = {}
    units, groups = dict(solution.units), {}
    for number, cost in solution.units.items():
        unit = bench.units[number]
        if not unit.is_layer or bench.active.isdisjoint(unit.ops):
            continue
        ops = [bench.graph.by_name[name] for name in unit.ops]
        key = tuple((bench.alike[op.name], solution.chosen[op.name].split) for op in ops)
        if key not in known:
            known[key] = tuple(_spans(bench, ops, solution.chosen, parts))
        if not any(splits for _, _, splits in known[key]):
            continue
        forward, kept, peak = cost.forward, cost.kept, 0.0
        made: list[Group] = []
        for start, stop, splits in known[key]:
            own = ops[start:stop]
            inside = 0.0
            for place, op in enumerate(own):
                node = solution.tables.node(op)
                which = node.options.index(solution.chosen[op.name])
                inside += sum(node.kept[held][which] for held in everything.get(op.name, ())) + node.extra[which]
                if splits:
                    one = solution.chosen[op.name]
                    degrees = {**one.degrees, splits[place]: one.degrees.get(splits[place], 1) * parts}
                    piece = bench.cost(op, degrees)
                    forward += parts * piece.forward - node.forward[which]
                for number_out, tensor in enumerate(op.outputs):
                    within = {name.name for name in own}
                    readers = bench.graph.consumers.get(tensor, ())
                    if any(reader not in within and bench.unit_of[reader] == number for reader in readers):
                        kept += node.kept["output", number_out][which]
            peak = max(peak, inside / (parts if splits else 1))
            named = dict(zip((op.name for op in own), splits, strict=True)) if splits else {}
            made.append(Group(tuple(op.name for op in own), parts if splits else 1, named))
        extra = forward - cost.forward
        units[number] = cost._replace(forward=forward, backward=cost.backward + 2 * extra, kept=kept, peak=peak)
        groups[number] = tuple(made)
    return replace(solution, units=units, groups=groups) if groups else None


def _spans(
    bench: Bench, ops: list[Op], chosen: Mapping[str, Option], parts: int
) -> list[tuple[int, int, tuple[str, ...]]]:
    """(start, stop, identifier of each operator, none if the span is not in pieces), without a gap."""
    found: list[tuple[int, int, tuple[str, ...]]] = []
    place = plain = 0
    while place < len(ops):
        best: tuple[str, ...] = ()
        for name in ops[place].annotation.splittable():
            run = _run(bench, ops[place:], name, chosen, parts)
            if len(run) > len(best):
                best = run
        if len(best) < SHORTEST:
            place += 1
            continue
        if plain < place:
            found.append((plain, place, ()))
        found.append((place, place + len(best), best))
        place = plain = place + len(best)
    if plain < len(ops):
        found.append((plain, len(ops), ()))
    return found


def _run(bench: Bench, ops: list[Op], first: str, chosen: Mapping[str, Option], parts: int) -> tuple[str, ...]:
    """Identifiers of as many operators as hand on the one that the first is cut on."""
    graph = bench.graph
    made: dict[str, tuple[Op, int, int]] = {}
    found: list[str] = []
    for op in ops:
        wanted: set[str] = set()
        for number, tensor in enumerate(op.inputs):
            if tensor not in made:
                continue
            producer, out, dim = made[tensor]
            left, right = chosen[producer.name], chosen[op.name]
            dims = op.annotation.inputs[number]
            if left.outputs[out] != right.inputs[number] or not dims[dim]:
                return tuple(found)
            if graph.tensors[tensor].requires_grad and left.wants[out] != right.gradients[number]:
                return tuple(found)
            wanted.add(dims[dim][0])
        name = first if not found else next(iter(wanted), "")
        if len(wanted) > 1 or name not in op.annotation.splittable():
            return tuple(found)
        if op.annotation.sizes[name] % (chosen[op.name].degrees.get(name, 1) * parts):
            return tuple(found)
        # Every input made here is cut where this operator cuts it, and every output is cut as well.
        cut = option(op, (name,), (parts,))
        if any(made[t][2] != cut.inputs[n][0] for n, t in enumerate(op.inputs) if t in made):
            return tuple(found)
        if any(code[0] < 0 for code in cut.outputs):
            return tuple(found)
        for number, tensor in enumerate(op.outputs):
            made[tensor] = (op, number, cut.outputs[number][0])
        found.append(name)
    return tuple(found)
