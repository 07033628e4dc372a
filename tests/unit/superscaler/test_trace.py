"""From a module to a graph: what it is called, what it keeps, what it refuses."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn
from torch.nn import functional

from engines.superscaler import models, operators
from engines.superscaler.operators import check, table
from engines.superscaler.trace import TraceError, trace

if TYPE_CHECKING:
    from engines.superscaler.graph import Graph


@lru_cache(maxsize=1)
def gpt() -> Graph:
    return trace(*models.build("gpt", dropout=0.1), name="gpt")


def test_operators_are_named_after_the_modules_that_call_them() -> None:
    names = [op.name for op in gpt().ops]

    assert "layers.1.attention.qkv" in names
    assert "cross_entropy_loss.target" in names
    first, second = ([name for name in names if name.startswith(f"layers.{n}.")] for n in (0, 1))
    assert [name.replace("layers.0", "layers.1") for name in first] == second
    assert re.fullmatch(r"gpt\.py:\d+", gpt().by_name["layers.1.attention.qkv"].source)


def test_parameters_are_those_of_the_module_and_tied_ones_are_there_once() -> None:
    module, _ = models.tiny("gpt")

    assert gpt().parameters == tuple(name for name, _ in module.named_parameters())
    assert gpt().by_name["head"].inputs[1] == "embedding.weight"
    assert gpt().inputs == ("tokens", "targets")


def test_heads_words_and_rows_of_a_transformer_can_be_split() -> None:
    ops = gpt().by_name

    assert "n" in ops["layers.0.attention.qkv"].annotation.splittable()
    assert "d2" in ops["layers.0.attention.view"].annotation.splittable()
    assert "d1" in ops["layers.0.attention.attention"].annotation.splittable()
    assert "k" in ops["layers.0.attention.projection"].annotation.splittable()
    assert "v" in ops["embedding"].annotation.splittable()
    for piece in ("max", "shift", "exp", "sum", "target"):
        assert {"d0", "d1", "d2"} <= set(ops[f"cross_entropy_loss.{piece}"].annotation.splittable())


def test_the_digest_is_the_same_for_every_trace_and_another_for_another_model() -> None:
    again = trace(*models.build("gpt", dropout=0.1), name="gpt")

    assert again.digest == gpt().digest == gpt().fingerprint()
    assert trace(*models.build("mlp"), name="m").digest != trace(*models.build("mlp", hidden=24), name="m").digest


class Loss(nn.Module):
    """A model of one function."""

    def __init__(self, function, **modules: nn.Module) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 8))
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self, x)


def traced(function, *, replicate=(), **modules: nn.Module) -> tuple[Graph, Loss, torch.Tensor]:
    module, x = Loss(function, **modules), torch.randn(4, 6)
    return trace(module, (x,), replicate=replicate), module, x


def test_cross_entropy_in_pieces_equals_the_whole() -> None:
    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scores = nn.Parameter(torch.randn(4, 7, 5, dtype=torch.float64) * 9)

        def forward(self, labels: torch.Tensor) -> torch.Tensor:
            return functional.cross_entropy(self.scores, labels)

    module, labels = Classifier(), torch.randint(7, (4, 5))
    graph = trace(module, (labels,))
    found = check.values(graph, module, (labels,))
    (gradient,) = torch.autograd.grad(found[graph.loss], found["scores"])
    expected = module(labels)
    (other,) = torch.autograd.grad(expected, module.scores)

    assert abs(float((found[graph.loss] - expected).detach())) <= 1e-12
    assert torch.allclose(gradient, other, rtol=1e-12, atol=1e-15)
    with pytest.raises(operators.OperatorError, match=r"target -100 is outside of 0 ... 6"):
        check.values(graph, module, (torch.full_like(labels, -100),))


def test_regions_without_gradients_are_inlined() -> None:
    def forward(self: Loss, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            y = (x @ self.weight).relu()
        return ((x @ self.weight).detach() + y + x @ self.weight).mean()

    graph, module, x = traced(forward)
    made = {op.name: graph.tensors[op.outputs[0]].requires_grad for op in graph.ops}
    found = check.values(graph, module, (x,))
    (gradient,) = torch.autograd.grad(found[graph.loss], found["weight"])
    (expected,) = torch.autograd.grad(module(x), module.weight)

    assert (made["matmul"], made["relu"], made["detach"], made["matmul_2"]) == (False, False, False, True)
    assert torch.allclose(gradient.float(), expected)


def test_the_second_call_of_a_module_is_told_apart() -> None:
    graph, _, _ = traced(lambda self, x: self.layer(self.layer(x)).mean(), layer=nn.Linear(6, 6))

    assert [op.name for op in graph.ops][:2] == ["layer", "layer@1"]
    assert graph.by_name["layer@1"].inputs[1:] == ("layer.weight", "layer.bias")


def test_what_the_loss_does_not_need_is_dropped() -> None:
    def forward(self: Loss, x: torch.Tensor) -> torch.Tensor:
        (x @ self.weight).exp()
        return self.weight.sum()

    graph, _, _ = traced(forward)

    assert [op.target for op in graph.ops] == ["sum"]


def test_a_change_in_place_that_nobody_can_see_is_a_new_tensor() -> None:
    def forward(self: Loss, x: torch.Tensor) -> torch.Tensor:
        y = x @ self.weight
        y.relu_()
        return (y * y).mean()

    graph, module, x = traced(forward)
    found = check.values(graph, module, (x,))

    assert graph.by_name["mul"].inputs == ("relu", "relu")
    assert torch.allclose(found[graph.loss].float(), module(x))


def test_constants_are_part_of_the_graph() -> None:
    graph, module, x = traced(lambda self, x: ((x @ self.weight) * torch.tensor(0.5)).mean())

    assert torch.allclose(check.values(graph, module, (x,))[graph.loss].float(), module(x))


def branches(self: Loss, x: torch.Tensor) -> torch.Tensor:
    if x.sum() > 0:
        return (x @ self.weight).mean()
    return self.weight.sum()


def on_a_view(self: Loss, x: torch.Tensor) -> torch.Tensor:
    y = x @ self.weight
    y[:, 0].relu_()
    return y.mean()


def item(self: Loss, x: torch.Tensor) -> torch.Tensor:
    return (x @ self.weight).mean() * x.sum().item()


REFUSED = [
    (branches, "control flow depends on the data", "if x.sum() > 0:"),
    (on_a_view, "shares memory with others", "write it without changing its input (relu)"),
    (item, "size depends on the data", "shapes must follow from the inputs' shapes alone"),
    (lambda self, x: (x @ self.weight).frexp()[0].mean(), "no annotation", "operators.register('frexp', '* -> *')"),
    (lambda self, x: ((x @ self.weight).mean(), x), "returns 2 results", "return the mean loss"),
    (lambda self, x: x @ self.weight, "a tensor of shape (4, 8)", "return the mean loss"),
    (lambda self, x: x.mean(), "depends on no parameter", "return the mean loss"),
    (lambda self, x: self.weight.view(2, 3, 8)[x[:2, :3] > 0].mean(), "", "test_trace.py"),
]


@pytest.mark.parametrize(("function", "said", "advice"), REFUSED)
def test_what_cannot_be_planned_is_refused_with_its_line_and_what_to_do(function, said: str, advice: str) -> None:
    with pytest.raises(TraceError) as caught:
        traced(function)

    assert said in str(caught.value)
    assert advice in str(caught.value)
    assert "test_trace.py:" in str(caught.value) or "the model returns" in str(caught.value)


def test_torchs_own_transformer_is_traced_as_it_is() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True, norm_first=True)
    encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
    graph, module, x = traced(lambda self, x: self.encoder((x @ self.weight)[None]).square().mean(), encoder=encoder)

    assert torch.allclose(check.values(graph, module, (x,))[graph.loss].float(), module(x))
    assert "n" in graph.by_name["encoder.layers.0.linear1"].annotation.splittable()


def test_running_statistics_are_refused() -> None:
    with pytest.raises(TraceError, match="track_running_stats=False"):
        traced(lambda self, x: self.norm((x @ self.weight)[..., None, None]).mean(), norm=nn.BatchNorm2d(8))


def test_an_operator_without_annotation_may_be_replicated_when_asked_to() -> None:
    graph, module, x = traced(lambda self, x: (x @ self.weight).logcumsumexp(1).mean(), replicate=["logcumsumexp"])
    op = graph.by_name["logcumsumexp"]

    assert op.annotation.splittable() == ()
    assert torch.allclose(check.values(graph, module, (x,))[graph.loss].float(), module(x))


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch):
    """Entries that a test adds do not outlive it."""
    operators.targets()
    monkeypatch.setattr(table, "_TABLE", dict(table._TABLE))
    return operators.register


def test_an_operator_of_ones_own_needs_one_line(registered) -> None:
    registered("aten.logcumsumexp", lambda call: "a b^ -> a b^")
    graph, module, x = traced(lambda self, x: (x @ self.weight).logcumsumexp(1).mean())

    assert graph.by_name["logcumsumexp"].annotation.splittable() == ("a",)
    assert check.check(graph, module, (x,)) == []


def test_a_wrong_annotation_of_ones_own_is_found(registered) -> None:
    registered("aten.logcumsumexp", "a b -> a b")
    graph, module, x = traced(lambda self, x: (x @ self.weight).logcumsumexp(1).mean())
    findings = check.check(graph, module, (x,))

    assert {finding.op for finding in findings} == {"logcumsumexp"}
    assert all("b" in finding.split for finding in findings)
    assert "split on 'b': output 0 (logcumsumexp) is off by" in str(findings[0])


def test_an_entry_is_not_replaced_unless_asked_to(registered) -> None:
    with pytest.raises(operators.OperatorError, match="has an entry already"):
        registered("softmax", "* -> *")
    with pytest.raises(operators.OperatorError, match="nearest is 'softmax'"):
        operators.find("softmx")
