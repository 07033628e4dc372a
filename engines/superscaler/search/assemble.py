"""From choices to a `Plan`: stages with meshes, splits, groups and weights, and the order of their blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from engines.superscaler import order as orders
from engines.superscaler.layout import Mesh
from engines.superscaler.order.pipeline import Pipeline
from engines.superscaler.order.timeline import in_flight, makespan, timeline
from engines.superscaler.plan import Group, Plan, Stage
from engines.superscaler.search.intra import UnitCost, total

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engines.superscaler.plan import Block
    from engines.superscaler.search.inter import Piece
    from engines.superscaler.search.problem import Bench

HOST = 16
"""Devices of the largest host there is: what lies so far apart lies in the same place of another host."""


@dataclass(frozen=True)
class Proposal:
    """A plan, and what the search thinks of it."""

    plan: Plan
    seconds: float
    memory: tuple[int, ...]
    """Bytes on each device of the plan, in their order."""
    split_gap: float
    """How far the splits of its stages may be from the optimum of the problem they solve: see `Found.split_gap`."""


def stage(bench: Bench, piece: Piece, number: int, devices: tuple[int, ...]) -> Stage:
    """One stage on these devices. It says how parameters are kept that it is the first to use."""
    solution = piece.candidate.solution
    units = bench.units[piece.first : piece.stop]
    names = {op for unit in units for op in unit.ops}
    ops = tuple(op.name for op in bench.graph.ops if op.name in names)
    used = {bench.graph.by_name[op].inputs[place] for op in ops for place in bench.owned[op]}
    groups: list[Group] = []
    if solution.setting.recompute:
        for unit in range(piece.first, piece.stop):
            if bench.units[unit].is_layer and not bench.active.isdisjoint(bench.units[unit].ops):
                groups += solution.groups.get(unit, (Group(bench.units[unit].ops),))
    return Stage(
        f"stage{number}",
        ops,
        Mesh(devices, solution.tables.mesh.shape),
        {op: solution.chosen[op].split for op in ops},
        tuple(groups),
        {
            name: way.weight
            for name, way in sorted(solution.weights.items())
            if name in used and way.level and bench.graph.tensors[name].role == "parameter"
        },
    )


def propose(
    bench: Bench,
    pieces: Sequence[Piece],
    meshes: Sequence[tuple[int, ...]],
    micro_batches: int,
    schedule: str,
    name: str,
) -> Proposal:
    """A plan of these stages, timed by its order: of `constraints.Schedule`, `interlaced` or `3f1b`."""
    stages = tuple(
        stage(bench, piece, number, devices) for number, (piece, devices) in enumerate(zip(pieces, meshes, strict=True))
    )
    split = range(len(stages)) if schedule == "zero-bubble" else ()
    pipeline = Pipeline.of(bench.graph, stages, micro_batches, split=split)
    costs = [
        total([piece.candidate.solution.units[unit] for unit in range(piece.first, piece.stop)]) for piece in pieces
    ]
    durations: dict[tuple[int, str], float] = {}
    for number, cost in enumerate(costs):
        durations[number, "F"] = cost.forward
        durations[number, "B"] = cost.backward / (2 if number in split else 1)
        durations[number, "W"] = cost.backward / 2
    transfers = {
        (before, number): crossing(bench, stages[before], stages[number])
        for number, earlier in enumerate(pipeline.before)
        for before in earlier
    }
    transfers |= {(right, left): seconds for (left, right), seconds in transfers.items()}
    order = _order(schedule, pipeline, meshes)
    orders.check(pipeline, order)
    placed = timeline(pipeline, order, durations, transfers)  # type: ignore[arg-type]
    devices = sorted({device for group in meshes for device in group})
    kept = in_flight(pipeline, order)
    once, memory = dict.fromkeys(devices, 0.0), dict.fromkeys(devices, 0.0)
    peaks = dict.fromkeys(devices, 0.0)
    for number, (cost, group) in enumerate(zip(costs, meshes, strict=True)):
        for device in group:
            once[device] += cost.once
            memory[device] += cost.persistent + kept.get(number, 0) * cost.kept
            peaks[device] = max(peaks[device], cost.peak)
    gap = max(
        (piece.candidate.solution.objective / piece.candidate.solution.bound - 1 for piece in pieces), default=0.0
    )
    plan = Plan(bench.graph.digest, stages, micro_batches, tuple(order), name)
    used = tuple(int(memory[device] + peaks[device]) for device in devices)
    return Proposal(plan, float(makespan(placed) + max(once.values())), used, float(max(gap, 0.0)))


def _order(schedule: str, pipeline: Pipeline, meshes: Sequence[tuple[int, ...]]) -> tuple[Block, ...]:
    """That of a schedule, less the backward passes of stages that have none."""
    stages, micro_batches = len(meshes), pipeline.micro_batches
    groups = len(set(meshes))
    if schedule == "interlaced":
        shared = [number for number, group in enumerate(meshes) if len(group) == max(map(len, meshes))]
        made = orders.interlaced(stages, micro_batches, shared)
    elif schedule == "3f1b":
        made = orders.recycling(stages, micro_batches, stages // groups)
    elif schedule == "interleaved":
        made = orders.interleaved(stages, micro_batches, stages // groups)
    else:
        named = {"1f1b": orders.one_f_one_b, "gpipe": orders.gpipe, "zero-bubble": orders.zero_bubble}
        made = named[schedule](stages, micro_batches)
    return tuple(block for block in made if block.what == "F" or pipeline.passes[block.stage] != "F")


def crossing(bench: Bench, left: Stage, right: Stage) -> float:
    """Seconds for what one stage reads from another, forward: each device of the larger mesh moves its share."""
    graph, made = bench.graph, set(left.ops)
    crossing = {name for op in right.ops for name in graph.by_name[op].inputs if graph.producer.get(name) in made}
    nbytes = sum(graph.tensors[name].nbytes for name in crossing)
    return moved(bench, nbytes, left.mesh.devices, right.mesh.devices)


def moved(bench: Bench, nbytes: int, near: Sequence[int], far: Sequence[int]) -> float:
    """Seconds until a tensor has come from one set of devices to another, each moving its share.

    Of many devices, as many are looked at as share links: those of the first hosts.
    """
    from engines.superscaler.cost import Message

    wide = max(len(near), len(far))
    if not wide or not nbytes:
        return 0.0
    key = (nbytes, len(near), len(far), near[0] % HOST, far[0] - near[0])
    if key not in bench.crossings:
        messages = [
            Message(near[n * len(near) // wide], far[n * len(far) // wide], nbytes // wide) for n in range(wide)
        ]
        bench.crossings[key] = bench.costs.messages(messages[: 4 * HOST])
    return bench.crossings[key]


def lacking(cost: UnitCost, in_flight: int, capacity: float) -> float:
    """Bytes that a stage is over a device's memory."""
    return cost.persistent + in_flight * cost.kept + cost.peak - capacity
