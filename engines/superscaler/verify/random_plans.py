"""Plans that nobody would choose: the sound ones that no verifier may object to.

Everything is drawn: devices and their order, mesh axes, cuts of the model into stages, an identifier (or none) for
every operator and axis, recomputed groups, how weights are kept, and the order of blocks. A seed always gives the same
plan.
"""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING

from engines.superscaler.dependency import preserve
from engines.superscaler.layout import Mesh
from engines.superscaler.order import Pipeline
from engines.superscaler.plan import Group, Plan, Stage, Weight
from harness.api import PlanError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engines.superscaler.graph import Graph, Op
    from engines.superscaler.plan import Block
    from engines.superscaler.program import Program

ATTEMPTS = 200
MESHES = {1: ((1,),), 2: ((2,), (2, 1)), 4: ((4,), (2, 2)), 8: ((8,), (2, 4), (4, 2), (2, 2, 2))}


def program(graph: Graph, seed: int, devices: int | None = None) -> Program:
    """A random plan, lowered.

    Args:
        graph: The model.
        seed: Of the draw.
        devices: How many; 2, 4 or 8 are drawn by default.

    Raises:
        PlanError: so many draws were refused by phase 3 that something else must be wrong; the last refusal.
    """
    draw = random.Random(seed)
    refusal: PlanError | None = None
    for _ in range(ATTEMPTS):
        try:
            return preserve(graph, plan(graph, draw, devices or draw.choice((2, 4, 8)), f"random {seed}"))
        except PlanError as error:
            refusal = error
    raise PlanError(f"no plan in {ATTEMPTS} draws from seed {seed}; the last was refused: {refusal}")


def plan(graph: Graph, draw: random.Random, devices: int, name: str = "random") -> Plan:
    """One draw; it may be refused (a maximum that would be divided, a co-sharded group that would communicate)."""
    stages = _stages(graph, draw, devices)
    micro_batches = draw.randint(1, 4)
    split = [number for number in range(len(stages)) if draw.random() < 0.3]
    pipeline = Pipeline.of(graph, stages, micro_batches, split=split)
    return Plan(graph.digest, tuple(stages), micro_batches, _order(pipeline, draw), name)


def _stages(graph: Graph, draw: random.Random, devices: int) -> list[Stage]:
    count = min(draw.choice([1, 1, 2, 2, 3, 4]), len(graph.ops))
    cuts = sorted(draw.sample(range(1, len(graph.ops)), count - 1)) if count > 1 else []
    ranks = list(range(devices))
    draw.shuffle(ranks)
    kept: set[str] = set()
    stages = []
    for number, (start, stop) in enumerate(zip([0, *cuts], [*cuts, len(graph.ops)], strict=True)):
        mesh = _mesh(draw, ranks, number, count)
        ops = graph.ops[start:stop]
        splits = _splits(draw, ops, mesh)
        groups = _groups(draw, ops, splits, mesh)
        weights = _weights(draw, graph, ops, splits, mesh, kept)
        stages.append(Stage(f"s{number}", tuple(op.name for op in ops), mesh, splits, groups, weights))
    return stages


def _mesh(draw: random.Random, ranks: Sequence[int], number: int, count: int) -> Mesh:
    """Devices of their own for every stage, or drawn ones, which may be shared."""
    share = 1 << int(math.log2(max(len(ranks) // count, 1)))
    if draw.random() < 0.6 and (number + 1) * share <= len(ranks):
        chosen = list(ranks[number * share : (number + 1) * share])
    else:
        size = draw.choice([size for size in MESHES if size <= len(ranks)])
        chosen = draw.sample(list(ranks), size)
    return Mesh(tuple(chosen), draw.choice(MESHES[len(chosen)]))


def _splits(draw: random.Random, ops: Sequence[Op], mesh: Mesh) -> dict[str, tuple[str, ...]]:
    """For every operator an identifier per axis; often what the one before it has, so that runs are longer than one."""
    found: dict[str, tuple[str, ...]] = {}
    before: tuple[str, ...] = ()
    for op in ops:
        split: list[str] = []
        parts: dict[str, int] = {}
        for axis, degree in enumerate(mesh.shape):
            options = [
                name
                for name in op.annotation.splittable()
                if op.annotation.sizes[name] % (parts.get(name, 1) * degree) == 0
            ]
            if before and before[axis] in options and draw.random() < 0.5:
                choice = before[axis]
            else:
                choice = draw.choice(["", *options])
            parts[choice] = parts.get(choice, 1) * degree
            split.append(choice)
        before = found[op.name] = tuple(split)
    return found


def _groups(
    draw: random.Random, ops: Sequence[Op], splits: dict[str, tuple[str, ...]], mesh: Mesh
) -> tuple[Group, ...]:
    """Up to two groups of neighbours that are recomputed; a single operator may be co-sharded."""
    found = []
    start = 0
    for _ in range(draw.choice([0, 0, 1, 2])):
        if start >= len(ops):
            break
        first = draw.randrange(start, len(ops))
        last = min(len(ops), first + draw.randint(1, 6))
        if draw.random() < 0.3:
            op = ops[first]
            degrees = {
                name: math.prod(d for d, n in zip(mesh.shape, splits[op.name], strict=True) if n == name)
                for name in op.annotation.splittable()
            }
            options = [name for name, degree in degrees.items() if op.annotation.sizes[name] % (2 * degree) == 0]
            if options:
                found.append(Group((op.name,), 2, {op.name: draw.choice(options)}))
                start = first + 1
                continue
        found.append(Group(tuple(op.name for op in ops[first:last])))
        start = last
    return tuple(found)


def _weights(
    draw: random.Random,
    graph: Graph,
    ops: Sequence[Op],
    splits: dict[str, tuple[str, ...]],
    mesh: Mesh,
    kept: set[str],
) -> dict[str, Weight]:
    """Some weights that this stage is the first to use are kept or updated in parts."""
    found = {}
    for op in ops:
        for slot, tensor in enumerate(op.inputs):
            if graph.tensors[tensor].role != "parameter" or tensor in kept:
                continue
            kept.add(tensor)
            if draw.random() < 0.5:
                continue
            shape = list(graph.tensors[tensor].shape)
            used = set()
            for axis, name in enumerate(splits[op.name]):
                dim = op.annotation.input_dim(slot, name) if name else None
                if dim is not None:
                    used.add(axis)
                    shape[dim] //= mesh.shape[axis]
            axes = []
            for axis in draw.sample(range(len(mesh.shape)), len(mesh.shape)):
                dims = [dim for dim, length in enumerate(shape) if length % mesh.shape[axis] == 0]
                if axis not in used and dims and draw.random() < 0.8:
                    dim = draw.choice(dims)
                    shape[dim] //= mesh.shape[axis]
                    axes.append((axis, dim))
            if axes:
                stage = draw.choice((1, 2, 3))
                found[tensor] = Weight(tuple(axes), stage >= 2, stage >= 3)
    return found


def _order(pipeline: Pipeline, draw: random.Random) -> tuple[Block, ...]:
    """Any order in which nothing comes before what it needs."""
    left = list(pipeline.blocks())
    done: set[Block] = set()
    found = []
    while left:
        ready = [block for block in left if done.issuperset(pipeline.needs(block))]
        block = draw.choice(ready)
        left.remove(block)
        done.add(block)
        found.append(block)
    return tuple(found)
