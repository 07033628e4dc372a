"""Any pipeline, any durations, any room: orders are valid, within it, and never worse than what was known."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from engines.superscaler import order
from engines.superscaler.order import Pipeline
from engines.superscaler.order.periodic import on_grid, periodic, unrolled

EFFORT = 0.05


@st.composite
def instances(draw, most=4):
    """(pipeline, durations, caps)."""
    count = draw(st.integers(1, most))
    devices = [tuple(sorted(draw(st.sets(st.integers(0, 2), min_size=1, max_size=3)))) for _ in range(count)]
    earlier = [draw(st.sets(st.integers(0, stage - 1), min_size=1)) for stage in range(1, count)]
    before = [(), *(tuple(sorted(stages)) for stages in earlier)]
    # A gradient reaches every stage that reads from one that it reaches, so forward-only stages come first.
    alone = draw(st.integers(0, count - 1))
    passes = ["F"] * alone + [draw(st.sampled_from(["FB", "FBW"])) for _ in range(count - alone)]
    pipeline = Pipeline(tuple(devices), tuple(before), tuple(passes), draw(st.integers(1, 5)))
    length = st.one_of(st.integers(1, 5), st.floats(0.1, 3.0, allow_nan=False))
    durations = {(stage, what): draw(length) for stage, each in enumerate(passes) for what in each}
    caps = [draw(st.one_of(st.none(), st.integers(1, 4))) for _ in range(count)]
    return pipeline, durations, caps


def within(pipeline, found, caps):
    kept = order.in_flight(pipeline, found)
    return all(caps[stage] is None or most <= caps[stage] for stage, most in kept.items())


@settings(max_examples=40, deadline=None)
@given(instances())
def test_a_modulo_schedule_overlaps_nowhere_and_keeps_to_the_caps(instance):
    pipeline, durations, caps = instance
    grid = on_grid(pipeline, durations)
    found = periodic(pipeline, grid, caps, EFFORT)
    if found is None:
        return
    assert grid.load(pipeline) <= found.bound <= found.period
    for device in pipeline.groups:
        taken = set()
        for kind, start in found.starts.items():
            if device in pipeline.devices[kind[0]]:
                units = {(start + unit) % found.period for unit in range(grid.durations[kind])}
                assert len(units) == grid.durations[kind]
                assert taken.isdisjoint(units)
                taken |= units
    for kind, start in found.starts.items():
        for need in pipeline.needed(*kind):
            assert found.starts[need] + grid.durations[need] <= start
    order.check(pipeline, unrolled(pipeline, found))
    assert within(pipeline, unrolled(pipeline, found), caps)


@settings(max_examples=40, deadline=None)
@given(instances())
def test_the_best_order_is_valid_and_never_worse_than_what_it_was_given(instance):
    pipeline, durations, caps = instance
    candidates = {
        "one after another": pipeline.blocks() if pipeline.passes[-1] == "F" else sequential(pipeline),
        "listed": order.greedy(pipeline, durations, caps),
    }
    found = order.best(pipeline, durations, caps=caps, candidates=candidates, effort=EFFORT)
    order.check(pipeline, found.order)
    assert within(pipeline, found.order, caps)
    lengths = [order.makespan(order.timeline(pipeline, each, durations)) for each in candidates.values()]
    assert found.makespan <= min(lengths)
    assert found.makespan == order.makespan(order.timeline(pipeline, found.order, durations))
    assert found.bound <= found.makespan * (1 + 1e-9)


def sequential(pipeline):
    """Each micro-batch through all stages before the next."""
    one = order.greedy(Pipeline(pipeline.devices, pipeline.before, pipeline.passes, 1), unit(pipeline))
    return tuple(block._replace(micro_batch=m) for m in range(pipeline.micro_batches) for block in one)


def unit(pipeline):
    return {(stage, what): 1 for stage, passes in enumerate(pipeline.passes) for what in passes}


@settings(max_examples=60, deadline=None)
@given(instances(most=6))
def test_each_devices_list_is_a_projection_of_the_order_that_merging_them_gives(instance):
    pipeline, durations, caps = instance
    found = order.greedy(pipeline, durations, caps)
    lists = {
        device: [block for block in found if device in pipeline.devices[block.stage]] for device in pipeline.groups
    }
    merged = order.merge(pipeline, lists)
    order.check(pipeline, merged)
    for device, blocks in lists.items():
        assert [block for block in merged if device in pipeline.devices[block.stage]] == blocks
