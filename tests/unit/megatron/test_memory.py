"""The memory model against what autograd keeps."""

from __future__ import annotations

import pytest

from engines.megatron import memory
from engines.megatron.operators import Operators
from engines.megatron.plan import Job
from engines.megatron.spec import Spec

torch = pytest.importorskip("torch")


def kept(stage, *inputs):
    """Bytes that a forward pass leaves for the backward pass, parameters and buffers aside."""
    known = {p.untyped_storage().data_ptr() for p in [*stage.parameters(), *stage.buffers()]}
    found = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known and tensor.is_floating_point():
            found[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = stage(*inputs)
    return sum(nbytes for nbytes, _ in found.values()), output


@pytest.mark.parametrize("recompute", ["none", "full"])
@pytest.mark.parametrize("number", [0, 1])
def test_a_micro_batch_keeps_what_the_model_says(recompute, number):
    from engines.megatron.model import Stage
    from engines.megatron.tensor_parallel import Shard

    fields = {"layers": 4, "hidden": 32, "heads": 4, "sequence": 16, "vocabulary": 64, "micro_batch": 2}
    job = Job.from_spec(Spec(model="custom", pipeline=2, recompute=recompute, **fields))
    stage = Stage(job.shape, stage=number, stages=2, shard=Shard(), seed=0, recompute=recompute == "full")
    tokens = torch.zeros(2, 16, dtype=torch.int64)
    x = tokens if number == 0 else torch.randn(2, 16, 32, requires_grad=True)
    found, output = kept(stage, x, tokens)
    if number == 0:
        found += output.nbytes
    assert memory.micro_batch(job, last=number == 1) == pytest.approx(found, rel=0.03)
    assert Operators(job).parameters(first=number == 0, last=number == 1) == sum(p.numel() for p in stage.parameters())


def test_parameters_take_16_bytes_and_18_with_a_copy_to_compute_with():
    need = {}
    for dtype in ("fp32", "bf16"):
        job = Job.from_spec(Spec(dtype=dtype))
        need[dtype] = memory.stages(job)[0].parameters
        assert need[dtype] == {"fp32": 16, "bf16": 18}[dtype] * job.shape.parameters


def test_the_first_stage_of_1f1b_keeps_most():
    job = Job.from_spec(Spec(model="gpt-small", pipeline=4, global_batch=8, vocabulary=2))
    activations = [need.activations for need in memory.stages(job)]
    assert activations[0] > activations[1] > activations[2]
