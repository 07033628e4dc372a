import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulation.workloads.schedule import Pass, most_kept, schedule

PIPELINES = st.tuples(st.sampled_from(["gpipe", "1f1b", "interleaved"]), st.integers(1, 6), st.integers(1, 4))


def made(name, stages, factor, chunks):
    interleaved = name == "interleaved"
    micro_batches = factor * stages if interleaved else factor * 2 - 1
    return schedule(name, stages, micro_batches, chunks if interleaved else 1), micro_batches


def can_go(found, stages, chunks):
    """Carry a schedule out: a pass goes when the one before it in the model is done."""
    place, done = [0] * stages, set()
    total = stages * chunks
    while any(place[stage] < len(found[stage]) for stage in range(stages)):
        moved = False
        for stage in range(stages):
            while place[stage] < len(found[stage]):
                step = found[stage][place[stage]]
                here = step.chunk * stages + stage
                before = here - 1 if step.direction == "forward" else here + 1
                if 0 <= before < total and (step.direction, step.micro_batch, before) not in done:
                    break
                if step.direction == "backward" and ("forward", step.micro_batch, here) not in done:
                    return False
                done.add((step.direction, step.micro_batch, here))
                place[stage] += 1
                moved = True
        if not moved:
            return False
    return True


@given(PIPELINES, st.integers(1, 3))
def test_every_micro_batch_goes_forward_then_backward_through_every_chunk(pipeline, chunks):
    found, micro_batches = made(*pipeline, chunks)
    chunks = chunks if pipeline[0] == "interleaved" else 1
    for passes in found:
        assert len(passes) == len(set(passes)) == 2 * micro_batches * chunks
        place = {step: number for number, step in enumerate(passes)}
        for number in range(micro_batches):
            for chunk in range(chunks):
                assert place[Pass("forward", number, chunk)] < place[Pass("backward", number, chunk)]


@given(PIPELINES, st.integers(1, 3))
def test_no_stage_waits_for_ever(pipeline, chunks):
    found, _ = made(*pipeline, chunks)
    assert can_go(found, pipeline[1], chunks if pipeline[0] == "interleaved" else 1)


@given(st.integers(1, 8), st.integers(1, 20))
def test_1f1b_keeps_at_most_one_micro_batch_for_each_later_stage(stages, micro_batches):
    found = schedule("1f1b", stages, micro_batches)
    assert [most_kept(passes) for passes in found] == [min(stages - s, micro_batches) for s in range(stages)]


def test_gpipe_keeps_all():
    assert [most_kept(passes) for passes in schedule("gpipe", 3, 5)] == [5, 5, 5]


def test_what_cannot_be_scheduled_is_refused():
    with pytest.raises(ValueError, match="at least one stage"):
        schedule("1f1b", 0, 1)
    with pytest.raises(ValueError, match="'interleaved' has several"):
        schedule("1f1b", 2, 4, 2)
    with pytest.raises(ValueError, match="5 is not a multiple of 2"):
        schedule("interleaved", 2, 5, 2)
