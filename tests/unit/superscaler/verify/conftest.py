"""A small model written by hand, so that what is verified does not depend on tracing."""

from __future__ import annotations

import pytest

from engines.superscaler.annotation import Annotation
from engines.superscaler.graph import Graph, Op, Tensor


def _op(name, target, inputs, outputs, annotation):
    return Op(name, target, inputs, outputs, {}, annotation)


def two_layers(batch=8, wide=12, narrow=4):
    """x @ w1 -> gelu -> @ w2 -> square -> mean: two layers of a perceptron, in the notation of the operator table."""
    sizes = {"b": batch, "k": narrow, "n": wide}
    tensors = [
        Tensor("x", (batch, narrow), "fp32", "input", False),
        Tensor("w1", (wide, narrow), "fp32", "parameter", True),
        Tensor("w2", (narrow, wide), "fp32", "parameter", True),
        Tensor("h", (batch, wide), "fp32", "activation", True),
        Tensor("g", (batch, wide), "fp32", "activation", True),
        Tensor("y", (batch, narrow), "fp32", "activation", True),
        Tensor("loss", (), "fp32", "activation", True),
    ]
    ops = (
        _op(
            "up", "linear", ("x", "w1"), ("h",),
            Annotation(((("b",), ("k",)), (("n",), ("k",))), ((("b",), ("n",)),), sizes, frozenset(), {"k": "sum"}),
        ),
        _op(
            "gelu", "gelu", ("h",), ("g",),
            Annotation(((("b",), ("n",)),), ((("b",), ("n",)),), {"b": batch, "n": wide}),
        ),
        _op(
            "down", "linear", ("g", "w2"), ("y",),
            Annotation(((("b",), ("n",)), (("k",), ("n",))), ((("b",), ("k",)),), sizes, frozenset(), {"n": "sum"}),
        ),
        _op(
            "mean", "mean_square", ("y",), ("loss",),
            Annotation(((("b",), ("k",)),), ((),), {"b": batch, "k": narrow}, frozenset(), {"b": "sum", "k": "sum"}),
        ),
    )  # fmt: skip
    return Graph("two layers", {t.name: t for t in tensors}, ops, ("x",), "loss", ("w1", "w2"), "two-layers")


@pytest.fixture(scope="session")
def graph():
    """The model."""
    return two_layers()
