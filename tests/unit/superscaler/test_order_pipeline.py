"""Dependence and passes of stages, as a graph has them."""

from __future__ import annotations

import pytest

from engines.superscaler.graph import Graph, Op, Tensor
from engines.superscaler.layout import Mesh
from engines.superscaler.order import Pipeline
from engines.superscaler.plan import Block, Plan, Stage
from harness.api import PlanError


def model(*ops, detached=()):
    """A graph of scalars: each op is its name and the names of those it reads from; all have a weight."""
    tensors = {"x": Tensor("x", (), "fp32", "input", False), "w": Tensor("w", (), "fp32", "parameter", True)}
    made = []
    for name, *reads in ops:
        tensors[name] = Tensor(name, (), "fp32", "activation", name not in detached)
        made.append(Op(name, "add", (*(reads or ["x"]), "w"), (name,), {}, annotation=None))
    return Graph("m", tensors, tuple(made), ("x",), ops[-1][0], ("w",))


def stages(*groups):
    return [Stage(str(n), tuple(ops), Mesh((n,), (1,)), {}) for n, ops in enumerate(groups)]


def test_a_stage_reads_from_those_that_make_what_its_operators_take():
    graph = model(("a",), ("b", "a"), ("c", "b"), ("d", "a", "c"))
    pipeline = Pipeline.of(graph, stages("a", "bc", "d"), 2)
    assert pipeline.before == ((), (0,), (0, 1))
    assert pipeline.after == ((1, 2), (2,), ())
    assert pipeline.devices == ((0,), (1,), (2,))
    assert pipeline.passes == ("FB", "FB", "FB")
    assert pipeline.needs(Block(0, 1, "B")) == (Block(0, 1, "F"), Block(1, 1, "B"), Block(2, 1, "B"))


def test_a_stage_that_no_gradient_reaches_has_no_backward_pass():
    graph = model(("a",), ("cut", "a"), ("b", "cut"), detached=("cut",))
    pipeline = Pipeline.of(graph, stages(["a"], ["cut"], ["b"]), 1)
    assert pipeline.passes == ("F", "F", "FB")
    assert pipeline.needs(Block(2, 0, "B")) == (Block(2, 0, "F"),)


def test_the_backward_passes_of_chosen_stages_are_split():
    pipeline = Pipeline.of(model(("a",), ("b", "a")), stages("a", "b"), 1, split=[1])
    assert pipeline.passes == ("FB", "FBW")
    assert pipeline.needs(Block(1, 0, "W")) == (Block(1, 0, "B"),)
    assert pipeline.last == {0: "B", 1: "W"}


def test_the_order_of_a_plan_says_which_backward_passes_are_split():
    found = (Block(0, 0, "F"), Block(1, 0, "F"), Block(1, 0, "B"), Block(0, 0, "B"), Block(0, 0, "W"))
    graph = model(("a",), ("b", "a"))
    plan = Plan(graph.digest, tuple(stages("a", "b")), 1, found)
    assert Pipeline.planned(graph, plan) == Pipeline.of(graph, plan.stages, 1, split=[0])


def test_a_stage_cannot_read_from_a_later_one():
    graph = model(("a",), ("b", "a"), ("c", "b"))
    with pytest.raises(PlanError, match=r"stage 0 reads from stages \(1,\): they must have lower numbers"):
        Pipeline.of(graph, stages("ac", "b"), 1)


def test_a_pipeline_has_devices_and_micro_batches():
    with pytest.raises(PlanError, match="stage 1 has no device"):
        Pipeline.chain([(0,), ()], 1)
    with pytest.raises(PlanError, match="not 1 and 0"):
        Pipeline.chain([(0,)], 0)
