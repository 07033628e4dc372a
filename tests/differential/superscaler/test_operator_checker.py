"""Parts of operators: what they compute, and what they cost."""

from __future__ import annotations

import dataclasses
from functools import lru_cache

import pytest
import torch

from engines.superscaler import models
from engines.superscaler.annotation import resolve
from engines.superscaler.graph import Graph, Op
from engines.superscaler.operators import Part, context, find
from engines.superscaler.operators.check import check, check_op, kept, values
from engines.superscaler.trace import trace


@lru_cache(maxsize=2)
def traced(name: str) -> tuple[Graph, torch.nn.Module, tuple[torch.Tensor, ...]]:
    module, batch = models.build(name, **({"dropout": 0.25} if name == "gpt" else {}))
    return trace(module, batch, name), module, batch


@pytest.mark.parametrize("name", ["mlp", "gpt"])
def test_every_split_that_an_annotation_allows_equals_the_whole(name: str) -> None:
    assert check(*traced(name)) == []


# --- annotations that are not true --------------------------------------------------------------------------------

X = (4, 6, 8)
PLANTED = {
    "a norm over a dim that is split": ("layer_norm", "a b h, h, h -> a b h", [X, (8,), (8,)], [X],
                                        {"normalized_shape": [8]}),
    "a softmax along a dim that is split": ("softmax", "a b c -> a b c", [X], [X], {"dim": 2}),
    "a largest one that is summed": ("amax", "a b c+ -> a b", [X], [(4, 6)], {"dim": [2], "keepdim": False}),
    "a sum that is a largest one": ("sum", "a b c|max -> a b", [X], [(4, 6)], {"dim": [2], "keepdim": False}),
    "dims swapped": ("permute", "a b c -> a b c", [(4, 6, 6)], [(4, 6, 6)], {"dims": [0, 2, 1]}),
    "a transposed weight": ("linear", "a k+, k+ n -> a n", [(4, 8), (8, 8)], [(4, 8)], {}),
    "a bias that every part adds": ("biased", "a k+, n k+, n -> a n", [(4, 6), (8, 6), (8,)], [(4, 8)], {}),
    "a roll along a dim that is split": ("roll", "a b c -> a b c", [X], [X], {"shifts": [1], "dims": [1]}),
    "a batch norm whose batch is split": ("batch_norm", "a b c d, b, b -> a b c d", [(4, 6, 2, 2), (6,), (6,)],
                                          [(4, 6, 2, 2)], {}),
}  # fmt: skip


@pytest.mark.parametrize("what", PLANTED)
def test_a_planted_wrong_annotation_is_found(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from engines.superscaler.operators import table

    target, text, inputs, outputs, attributes = PLANTED[what]
    monkeypatch.setattr(table, "_TABLE", dict(table._TABLE))
    find("linear")
    table.define("biased", "", lambda local: torch.nn.functional.linear(*local.inputs))
    annotation = resolve(text, inputs, outputs)
    op = Op("planted", target, tuple(f"i{n}" for n in range(len(inputs))), ("o",), attributes, annotation)
    generator = torch.Generator().manual_seed(1)
    given = [torch.randn(shape, dtype=torch.float64, generator=generator) for shape in inputs]

    assert check_op(op, given, [True] * len(given)) != []


def test_a_wrong_gradient_is_found_where_outputs_are_right(monkeypatch: pytest.MonkeyPatch) -> None:
    from engines.superscaler.operators import table

    find("linear")
    monkeypatch.setattr(table, "_TABLE", dict(table._TABLE))

    def compute(local):
        # Right forward; but each part's gradient of the bias is the whole's share, though it is added up.
        part = local.parts.get("b", Part(0, 1))
        return local.inputs[0] + local.inputs[1] / part.degree + local.inputs[1].detach() * (1 - 1 / part.degree)

    table.define("shy", "", compute)
    annotation = resolve("b h, h -> b h", [(4, 6), (6,)], [(4, 6)])
    op = Op("shy", "shy", ("x", "bias"), ("y",), {}, annotation)
    given = [torch.randn(4, 6, dtype=torch.float64), torch.randn(6, dtype=torch.float64)]
    findings = check_op(op, given, [True, True])

    assert {finding.what for finding in findings} == {"gradient of input 1 (bias)"}


# --- dropout ------------------------------------------------------------------------------------------------------


def dropout(x: torch.Tensor, parts: dict[str, Part], **now: int) -> torch.Tensor:
    annotation = resolve("a b -> a b", [(8, 12)], [(8, 12)])
    op = Op("drop", "dropout", ("x",), ("y",), {"p": 0.5}, annotation)
    with context(**now):
        return find("dropout").compute(op, [x], parts)[0]


def test_dropout_drops_by_place_in_the_whole() -> None:
    x = torch.ones(8, 12)
    whole = dropout(x, {})
    part = dropout(x[4:, 8:], {"a": Part(1, 2), "b": Part(2, 3)})

    assert torch.equal(whole[4:, 8:], part)
    assert set(whole.unique().tolist()) == {0.0, 2.0}


def test_dropout_differs_between_steps_micro_batches_and_seeds_and_keeps_its_rate() -> None:
    x = torch.ones(8, 12)
    masks = [dropout(x, {}, **now) for now in ({}, {"step": 1}, {"micro_batch": 1}, {"seed": 1})]

    assert len({str(mask.tolist()) for mask in masks}) == 4
    assert 0.4 < torch.stack(masks).bool().float().mean() < 0.6


# --- cost ---------------------------------------------------------------------------------------------------------


def test_a_linear_layer_costs_two_operations_per_product_and_keeps_both_factors() -> None:
    graph, _, _ = traced("gpt")
    op = graph.by_name["layers.0.feed_forward.up"]
    whole = find("linear").work(op, graph.tensors, {})
    half = find("linear").work(op, graph.tensors, {"n": 2})

    assert whole.shape == (96, 128, 32)
    assert whole.flops == 2 * 96 * 128 * 32
    assert whole.backward_flops == 2 * whole.flops
    assert whole.saved == op.inputs[:2]
    assert half.flops == whole.flops / 2
    assert half.shape == (96, 64, 32)


def test_what_has_no_gradient_costs_nothing_backward() -> None:
    graph, _, _ = traced("gpt")
    op = graph.by_name["cross_entropy_loss.max"]
    work = find(op.target).work(op, graph.tensors, {})

    assert (work.backward_flops, work.backward_nbytes, work.saved, work.saved_extra) == (0, 0, (), 0)
    assert work.flops > 0


@pytest.mark.parametrize("name", ["mlp", "gpt"])
def test_what_an_operator_keeps_is_what_autograd_keeps(name: str) -> None:
    graph, module, batch = traced(name)
    found = values(graph, module, batch)
    for op in graph.ops:
        work = find(op.target).work(op, graph.tensors, {})
        said = sum(graph.tensors[tensor].nbytes for tensor in work.saved) + work.saved_extra
        inputs = [found[name].float() if found[name].is_floating_point() else found[name] for name in op.inputs]
        real = kept(op, inputs, [graph.tensors[name].requires_grad for name in op.inputs])
        # Indices of rows are a few bytes that are not worth counting.
        assert said == pytest.approx(real, rel=0.01, abs=256), (op.name, work)


def test_a_graph_can_be_checked_with_one_annotation_changed() -> None:
    graph, module, batch = traced("gpt")
    ops = [
        dataclasses.replace(op, annotation=dataclasses.replace(op.annotation, frozen=frozenset()))
        if op.name == "layers.0.feed_forward_norm"
        else op
        for op in graph.ops
    ]
    findings = check(dataclasses.replace(graph, ops=tuple(ops)), module, batch)

    assert {finding.op for finding in findings} == {"layers.0.feed_forward_norm"}
