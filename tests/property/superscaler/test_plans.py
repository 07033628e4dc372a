"""Any plan computes what one device does: random ones, and named ones with degrees. In float64, two steps of Adam."""

import itertools
import math
import random
import warnings

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engines.superscaler import models, named
from engines.superscaler.dependency import preserve
from engines.superscaler.layout import Mesh
from engines.superscaler.operands import operands
from engines.superscaler.plan import Block, Group, Plan, Stage, Weight
from engines.superscaler.runtime.interpret import interpret
from engines.superscaler.runtime.outcome import compare
from engines.superscaler.runtime.reference import make_batches, whole
from engines.superscaler.trace import trace

KNOWN = {}


def known(name, micro_batches):
    """(graph, module, batches, what one device makes of them)."""
    if (name, micro_batches) not in KNOWN:
        module, inputs = models.tiny(name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = trace(module, inputs)
        batches = make_batches(inputs, 2, micro_batches)
        outcome = interpret(whole(graph, micro_batches), module, batches)
        KNOWN[name, micro_batches] = graph, module, batches, outcome
    return KNOWN[name, micro_batches]


def check(name, plan):
    graph, module, batches, expected = known(name, plan.micro_batches)
    compare(interpret(preserve(graph, plan), module, batches), expected, 1e-10)


def random_split(chance, op, shape):
    parts, found = {}, []
    for degree in shape:
        fit = [n for n in op.annotation.splittable() if op.annotation.sizes[n] % (parts.get(n, 1) * degree) == 0]
        name = chance.choice(["", *fit])
        parts[name] = parts.get(name, 1) * degree
        found.append(name)
    return tuple(found)


def random_weight(chance, shape, layout, mesh):
    dims, axes = list(layout.dims), []
    for axis in range(len(mesh.shape)):
        if mesh.shape[axis] == 1 or any(axis in split for split in layout.dims):
            continue
        for dim, size in enumerate(shape):
            if size % math.prod(mesh.shape[a] for a in (*dims[dim], axis)) == 0:
                dims[dim] = (*dims[dim], axis)
                axes.append((axis, dim))
                break
    return Weight(tuple(axes), chance.random() < 0.5, chance.random() < 0.5)


def random_plan(chance, graph, micro_batches):
    ops = [op.name for op in graph.ops]
    cuts = [0, *sorted(chance.sample(range(1, len(ops)), chance.choice([0, 1, 2]))), len(ops)]
    stages, homes = [], set()
    for number, (start, end) in enumerate(itertools.pairwise(cuts)):
        size = chance.choice([1, 2, 4])
        shape = chance.choice([(size,), (1, size), (2, 2) if size == 4 else (size, 1)])
        mesh = Mesh(tuple(chance.sample(range(5), size)), shape)
        splits = {op: random_split(chance, graph.by_name[op], shape) for op in ops[start:end]}
        weights = {}
        for op in splits:
            layouts = operands(graph.by_name[op], mesh, splits[op]).inputs
            for tensor, need in zip(graph.by_name[op].inputs, layouts, strict=True):
                if graph.tensors[tensor].role == "parameter" and tensor not in homes:
                    homes.add(tensor)
                    weights[tensor] = random_weight(chance, graph.tensors[tensor].shape, need.value, mesh)
        first = chance.randrange(start, end)
        group = Group(tuple(ops[first : chance.randrange(first, end) + 1]))
        stages.append(Stage(f"s{number}", tuple(ops[start:end]), mesh, splits, (group,), weights))
    forward, backward = range(len(stages)), range(len(stages) - 1, -1, -1)
    late = chance.random() < 0.5
    order = [Block(s, m, "F") for m in range(micro_batches) for s in forward] if late else []
    for m in range(micro_batches):
        order += [] if late else [Block(s, m, "F") for s in forward]
        order += [Block(s, m, "B") for s in backward]
    if chance.random() < 0.5:
        order += [Block(s, m, "W") for m in range(micro_batches) for s in forward]
    return Plan(graph.digest, tuple(stages), micro_batches, tuple(order))


@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 10**9))
def test_any_plan_computes_what_one_device_does(seed):
    check("mlp", random_plan(random.Random(seed), known("mlp", 2)[0], 2))


@pytest.mark.parametrize("seed", range(3))
def test_any_plan_of_a_transformer_does(seed):
    check("gpt", random_plan(random.Random(seed), known("gpt", 2)[0], 2))


NAMED = [
    ("gpt", "hybrid", 8, {"tensor": 2, "pipeline": 2}),
    ("gpt", "1f1b", 4, {"tensor": 2, "recompute": True}),
    ("moe", "ep", 2, {}),
]


@pytest.mark.parametrize(("model", "name", "devices", "options"), NAMED)
def test_a_named_plan_computes_what_one_device_does(model, name, devices, options):
    plan = named.build(name, known(model, 4)[0], devices, micro_batches=4, **options)
    check(model, plan)
