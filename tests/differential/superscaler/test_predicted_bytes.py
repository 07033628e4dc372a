"""What is predicted from a program's actions, against what the runtime counts while it carries them out."""

from __future__ import annotations

import pytest
import torch

from engines.superscaler import dependency, emulate, memory, models, order, trace
from engines.superscaler.layout import Mesh
from engines.superscaler.plan import Plan, Stage
from engines.superscaler.runtime.interpret import interpret


def _first(op, graph, degree):
    """The identifier of the batch, where the operator has one that divides."""
    annotation = op.annotation
    for number, name in enumerate(op.inputs):
        dims = annotation.inputs[number]
        if graph.tensors[name].role in ("activation", "input") and dims and dims[0]:
            found = dims[0][0]
            if found in annotation.splittable() and annotation.sizes[found] % degree == 0:
                return found
    return ""


def _program(graph, stages, data, micro_batches):
    ops = [op.name for op in graph.ops]
    made = []
    for number in range(stages):
        own = tuple(ops[number * len(ops) // stages : (number + 1) * len(ops) // stages])
        mesh = Mesh(tuple(range(number * data, (number + 1) * data)), (data,))
        splits = {name: (_first(graph.by_name[name], graph, data),) for name in own}
        made.append(Stage(f"part {number}", own, mesh, splits))
    plan = Plan(graph.digest, tuple(made), micro_batches, order.one_f_one_b(stages, micro_batches))
    return dependency.preserve(graph, plan)


@pytest.fixture(params=["mlp", "gpt"])
def model(request):
    torch.manual_seed(0)
    module, inputs = models.tiny(request.param)
    return request.param, module, inputs, trace.trace(module, inputs)


@pytest.mark.parametrize(("stages", "data"), [(1, 1), (1, 2), (2, 2)])
def test_bytes_sent_and_held(model, stages, data):
    name, module, inputs, graph = model
    program = _program(graph, stages, data, 3)
    outcome = interpret(program, module, [[inputs] * 3] * 2, dtype=torch.float32)
    predicted = emulate.traffic(program)
    assert {device: 2 * found.received.total() for device, found in predicted.items()} == outcome.received
    assert {device: 2 * found.sent.total() for device, found in predicted.items()} == outcome.sent
    for device, held in memory.peak(program).items():
        # The runtime counts between instructions; during one, its inner gradients are alive besides.
        after = outcome.peak[device]
        within = held.total - held.by["moment"]
        assert within <= after * (1 + TOLERANCE[name])
        assert after <= held.total * (1 + TOLERANCE[name])


TOLERANCE = {"mlp": 0.0, "gpt": 0.03}
"""What operators say that autograd keeps is exact for those of an MLP; fused attention keeps a little more."""
