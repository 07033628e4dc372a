from dataclasses import replace

import pytest

from emulation.evaluate import simulate
from emulation.workloads.training import Plan, step_seconds, training_step
from emulation.workloads.transformer import Decoder, model_flops

MODEL = Decoder(hidden=256, layers=8, heads=8, sequence=128, vocabulary=1_024)
FRAMEWORK = {
    name: {"value": value, "grade": "measured", "source": "test"}
    for name, value in {"call": "10 us", "wide_call": "5 us", "micro_batch": "1 ms", "step": "7 ms"}.items()
}


def plan(**changes):
    sizes = {"tensor": 2, "pipeline": 2, "data": 2, "batch": 16, "micro_batch": 2}
    return Plan(**sizes | changes)


def names(program, kind):
    """Of collectives (parts of chains) or of transfers."""
    if kind == "transfer":
        return {item.name for item in program.items if item.kind == "transfer"}
    return {part.name for item in program.items for part in item.parts if part.kind == kind}


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "interleaved"])
def test_a_folded_step_takes_as_long_as_every_rank_of_it(small, schedule):
    profile = small(gpus=4, hosts=2, framework=FRAMEWORK)
    chunks = 2 if schedule == "interleaved" else 1
    program = training_step(MODEL, plan(schedule=schedule, chunks=chunks), profile)
    assert simulate(program, profile).picoseconds == simulate(program.expand(), profile).picoseconds


def test_ranks_together_do_the_flop_of_the_model(small):
    profile = small(gpus=8)
    program = training_step(MODEL, plan(), profile)
    done = sum(item.block.size * sum(part.flops for part in item.parts) for item in program.items)
    assert done == pytest.approx(model_flops(MODEL, 16), rel=1e-12)


def test_one_replica_sums_no_gradients(small):
    profile = small(gpus=8)
    assert "gradients" in {item.name for item in training_step(MODEL, plan(), profile).items}
    assert "gradients" not in {item.name for item in training_step(MODEL, plan(data=1), profile).items}


def test_one_rank_and_one_stage_send_nothing(small):
    program = training_step(MODEL, plan(tensor=1, pipeline=1, data=1), small(gpus=8))
    assert not names(program, "collective")
    assert not names(program, "transfer")


def test_interleaving_shortens_the_bubble(small):
    profile = small(gpus=8, rate="1000 GB/s")
    deep = plan(tensor=1, pipeline=4, data=1, batch=8)
    plain = step_seconds(MODEL, deep, profile)
    assert step_seconds(MODEL, replace(deep, schedule="interleaved", chunks=2), profile) < plain


def test_a_long_step_is_continued_as_if_it_had_been_simulated(small):
    profile = small(gpus=8, framework=FRAMEWORK)
    long = plan(tensor=1, pipeline=4, data=2, batch=160)
    whole = simulate(training_step(MODEL, long, profile), profile).seconds
    assert step_seconds(MODEL, long, profile) == pytest.approx(whole, rel=1e-6)


def test_a_pass_is_as_long_as_the_slower_of_device_and_host(small):
    one = plan(tensor=1, pipeline=1, data=1, batch=2)
    without = step_seconds(MODEL, one, small(gpus=1))
    slow = {**FRAMEWORK, "call": {**FRAMEWORK["call"], "value": "10 ms"}}
    free = {name: {**figure, "value": "0 s"} for name, figure in FRAMEWORK.items()}
    assert step_seconds(MODEL, one, small(gpus=1, framework=free)) == pytest.approx(without, rel=1e-9)
    # 19 kernels forward, 19 again, and 27 backward for each layer; 9 and 11 at the ends.
    launches = 8 * (19 + 19 + 27) + 3 + 7 + 5 + 3
    found = step_seconds(MODEL, one, small(gpus=1, framework=slow))
    assert found == pytest.approx(launches * 10e-3 + 1e-3 + 7e-3, rel=0.01)


def test_a_batch_that_cannot_be_split_is_refused():
    with pytest.raises(ValueError, match="a batch of 15 cannot be split over 2 replicas in micro-batches of 2"):
        plan(batch=15)
