"""Every operator of every model: parts against the whole, and the graph against the module it was traced from."""

from __future__ import annotations

import pytest
import torch

from engines.superscaler import models
from engines.superscaler.operators import find, targets
from engines.superscaler.operators.check import check, kept, values
from engines.superscaler.trace import trace

SMALLER = {"evoformer": {"batch": 2, "blocks": 1, "recycles": 2}, "t5": {"gated": True, "tied": False, "dropout": 0.1}}
FUSED_ELSEWHERE = {"rms_norm"}
"""On a CPU it is several operators, which keep more than the one that a GPU runs."""


@pytest.mark.parametrize("name", models.MODELS)
def test_a_model(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Annotations are true; loss and gradients are the module's; what is kept is what autograd keeps."""
    # Losses are computed in float32 at least: in float64, where all else is.
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    module, batch = models.build(name, dtype="fp64", **SMALLER.get(name, {}))
    graph = trace(module.train() if name != "t5" else module.eval(), batch, name)
    found = values(graph, module, batch)
    expected = module(*batch)
    trained = [name for name in graph.parameters if graph.tensors[name].requires_grad]
    gradients = torch.autograd.grad(found[graph.loss], [found[name] for name in trained], retain_graph=True)
    others = torch.autograd.grad(expected, [module.get_parameter(name) for name in trained])

    assert torch.allclose(found[graph.loss], expected, rtol=1e-12, atol=0)
    for one, other in zip(gradients, others, strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-12)
    assert check(graph, module, batch) == []
    for op in graph.ops:
        if op.target not in FUSED_ELSEWHERE:
            work = find(op.target).work(op, graph.tensors, {})
            said = sum(graph.tensors[tensor].nbytes for tensor in work.saved) + work.saved_extra
            real = kept(
                op, [found[name] for name in op.inputs], [graph.tensors[name].requires_grad for name in op.inputs]
            )
            # Statistics in float64 are twice as wide; indices of rows are a few bytes.
            assert said == pytest.approx(real, rel=0.1, abs=512), (op.name, work)


@pytest.mark.parametrize("name", ["swin", "t5", "evoformer", "resnet"])
def test_every_published_size_can_be_built_without_memory(name: str) -> None:
    for size in models.presets(name):
        shape = {"blocks": 1} if name == "evoformer" else {}
        module, batch = models.preset(name, size, device="meta", dtype="fp16", **shape)
        assert {tensor.device.type for tensor in (*module.parameters(), *batch)} == {"meta"}


def test_the_table_has_the_operators_of_these_models_and_more() -> None:
    assert len(targets()) >= 60
