"""What named plans divide, and what they say of models that they are not for."""

from functools import cache

import pytest

from engines.superscaler import models, named
from engines.superscaler.trace import trace
from harness.api import PlanError


@cache
def graph(name):
    return trace(*models.tiny(name, device="meta"))


def splits(plan):
    return {op: split for stage in plan.stages for op, split in stage.splits.items()}


def test_tokens_of_an_image_are_rows_of_its_patches():
    tensor, tokens = (splits(named.build(plan, graph("swin"), 2)) for plan in ("tp", "sp"))
    norms = [op.name for op in graph("swin").ops if op.target == "layer_norm" and op.name.startswith("layers")]
    assert {tensor[op] for op in norms} == {("", "")}
    assert {tokens[op] for op in norms} == {("", "*1")}
    # What stands between the sum of a row-parallel product and the addition is divided as well: the sum is scattered.
    assert tokens["layers.0.attention.view_5"] == ("", "d1")
    assert all(tokens[op] == split for op, split in tensor.items() if any(split))


@pytest.mark.parametrize(
    ("model", "name", "devices", "message"),
    [
        ("swin", "ep", 2, "the model has no experts"),
        ("t5", "3f1b", 2, "the model has no recycled passes"),
        ("t5", "sp", 4, r"10 tokens \(dim 1 of 'given'\) cannot be divided over 4 devices \(allowed: 1, 2, 5, 10\)"),
        ("swin", "sp", 16, r"8 tokens \(dim 2 of 'patches'\) cannot be divided over 16 .* \(allowed: 1, 2, 4, 8\)"),
        ("resnet", "sp", 2, "the model has no tokens that could be divided; plan .tp. needs none"),
    ],
)
def test_a_plan_that_is_not_for_a_model_says_why(model, name, devices, message):
    with pytest.raises(PlanError, match=message):
        named.build(name, graph(model), devices)
