"""Small plans of the two-layer MLP of `models.tiny`, each one of the things a runtime must be able to do."""

from __future__ import annotations

from functools import cache, partial

from engines.superscaler import models, order, trace
from engines.superscaler.layout import Mesh
from engines.superscaler.plan import Group, Plan, Stage, Weight

MICRO_BATCHES = 2


@cache
def model():
    """(module, example inputs, graph)."""
    module, example = models.tiny("mlp")
    return module, example, trace.trace(module, example)


def batch_dim(op):
    """The identifier of an operator's rows."""
    return op.annotation.inputs[0][0][0] if op.annotation.inputs[0] else ""


def megatron(op):
    """Column, then row parallel; nothing else is split."""
    if op.name.endswith(("up", "down")):
        return "n" if op.name.endswith("up") else "k"
    return "d1" if op.target == "gelu" else ""


def stage(name, ops, mesh, *rules, **options):
    graph = model()[2]
    return Stage(name, ops, mesh, {o: tuple(rule(graph.by_name[o]) for rule in rules) for o in ops}, **options)


def plan(name, stages, what=order.gpipe):
    graph = model()[2]
    return Plan(graph.digest, tuple(stages), MICRO_BATCHES, tuple(what(len(stages), MICRO_BATCHES)), name=name)


def halves():
    names = tuple(op.name for op in model()[2].ops)
    return names[:4], names[4:]


def everything():
    return tuple(op.name for op in model()[2].ops)


def data(size=2, **weight):
    zero = {name: Weight(**weight) for name in model()[2].parameters if weight}
    mesh = Mesh(tuple(range(size)), (size,))
    return plan(f"data {size} {weight}", [stage("all", everything(), mesh, batch_dim, weights=zero)])


def zero(stage_number):
    return data(2, axes=((0, 0),), gradient=stage_number > 1, value=stage_number > 2)


def tensor(size=2):
    return plan("tensor", [stage("all", everything(), Mesh(tuple(range(size)), (size,)), megatron)])


def hybrid():
    return plan("data x tensor", [stage("all", everything(), Mesh((0, 1, 2, 3), (2, 2)), batch_dim, megatron)])


def pipeline(what=order.one_f_one_b):
    first, last = halves()
    return plan(
        what.__name__,
        [stage("a", first, Mesh((0,), (1,)), lambda _: ""), stage("b", last, Mesh((1,), (1,)), lambda _: "")],
        what,
    )


def uneven():
    """Two ranks feed two others that lie otherwise: data parallel, then tensor parallel."""
    first, last = halves()
    return plan(
        "uneven",
        [stage("a", first, Mesh((0, 1), (2,)), batch_dim), stage("b", last, Mesh((2, 3), (2,)), megatron)],
        order.one_f_one_b,
    )


def recompute():
    first, last = halves()
    return plan("recompute", [stage("all", first + last, Mesh((0, 1), (2,)), batch_dim, groups=(Group(first),))])


def co_shard(parts=2):
    first, last = halves()
    by = {op: batch_dim(model()[2].by_name[op]) for op in first}
    # The addition comes after a sum over ranks: no communication lies within a group.
    groups = (Group(first[:3], parts, {name: by[name] for name in first[:3]}),)
    return plan("co-shard", [stage("all", first + last, Mesh((0, 1), (2,)), megatron, groups=groups)])


PLANS = {
    "data": data,
    "zero 1": partial(zero, 1),
    "zero 2": partial(zero, 2),
    "zero 3": partial(zero, 3),
    "tensor": tensor,
    "data x tensor": hybrid,
    "gpipe": partial(pipeline, order.gpipe),
    "1f1b": pipeline,
    "zero bubble": partial(pipeline, order.zero_bubble),
    "uneven": uneven,
    "recompute": recompute,
    "co-shard": co_shard,
}
