"""What `check` lets through can be carried out; what it proposes instead passes."""

from __future__ import annotations

import re

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from emulation.evaluate import simulate
from engines.megatron.lowering import Lowering
from engines.megatron.memory import stages
from engines.megatron.plan import Job
from engines.megatron.spec import Spec
from harness.hardware import load_profile

PROFILE = load_profile("a100x8-hdr")
small = st.integers(1, 4)
fields = st.fixed_dictionaries(
    {
        "layers": st.integers(1, 8),
        "heads": st.integers(1, 8),
        "hidden": st.integers(1, 64),
        "sequence": st.integers(1, 8),
        "vocabulary": st.integers(2, 64),
        "global_batch": st.integers(1, 12),
        "micro_batch": small,
        "tensor": small,
        "pipeline": small,
        "data": small,
        "schedule": st.sampled_from(["1f1b", "gpipe"]),
        "recompute": st.sampled_from(["none", "full"]),
    }
)


@st.composite
def dividing(draw):
    """Fields that mostly divide: products of the degrees and small factors, sometimes one off."""
    tensor, pipeline, data = (draw(st.sampled_from([1, 2, 3])) for _ in range(3))
    assume(tensor * pipeline * data <= 16)
    off = draw(st.sampled_from(["", "", "", "heads", "layers", "global_batch", "vocabulary", "hidden"]))
    micro_batch, heads = draw(small), tensor * draw(small)
    made = {
        "tensor": tensor,
        "pipeline": pipeline,
        "data": data,
        "micro_batch": micro_batch,
        "heads": heads,
        "hidden": heads * draw(small),
        "layers": pipeline * draw(st.integers(1, 2)),
        "vocabulary": tensor * draw(st.integers(2, 9)),
        "global_batch": micro_batch * data * draw(small),
        "sequence": draw(small),
        "schedule": draw(st.sampled_from(["1f1b", "gpipe"])),
        "recompute": draw(st.sampled_from(["none", "full"])),
    }
    return {**made, off: made[off] + 1} if off else made


@settings(max_examples=60, deadline=None)
@given(dividing())
def test_a_plan_that_passes_can_be_emulated_and_divides_everything_evenly(given):
    spec = Spec(model="custom", **given)
    assume(not list(spec.check()))
    job = Job.from_spec(spec)
    shape = job.shape
    assert job.micro_batches * job.micro_batch * job.data == job.global_batch
    assert job.stage_layers * job.pipeline == shape.layers
    assert all(n % job.tensor == 0 for n in (shape.heads, shape.hidden, shape.vocabulary))
    assert all(need.total > 0 for need in stages(job))
    assert simulate(Lowering(job, PROFILE).step(), PROFILE).seconds > 0


@settings(max_examples=200)
@given(fields)
def test_every_value_that_is_proposed_would_pass(given):
    spec = Spec(model="custom", **given)
    for problem in spec.check():
        name, values = problem.expected.split(": ")
        for value in map(int, re.findall(r"\d+", values)):
            again = Spec(model="custom", **{**given, name: value})
            assert problem.what not in [other.what for other in again.check()]
