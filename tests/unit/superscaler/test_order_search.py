"""Orders that a solver finds, on instances whose answers are known."""

from __future__ import annotations

import dataclasses

import pytest

from engines.superscaler import order
from engines.superscaler.order import Pipeline
from engines.superscaler.order.exact import exact, lower_bound
from engines.superscaler.order.periodic import on_grid, periodic, unrolled


def durations(pipeline, f=1, b=2):
    return {(stage, what): f if what == "F" else b for stage, passes in enumerate(pipeline.passes) for what in passes}


def v_shape(devices=4, micro_batches=1):
    return Pipeline.chain([(device,) for device in range(devices)], micro_batches)


def embedding_on_all(devices=4, micro_batches=1):
    return Pipeline.chain([range(devices), *((device,) for device in range(devices))], micro_batches)


def three_forward(devices=4, micro_batches=1):
    kinds = ["F"] * (2 * devices) + ["FB"] * devices
    return Pipeline.chain([(stage % devices,) for stage in range(3 * devices)], micro_batches, kinds)


@pytest.mark.parametrize(
    ("pipeline", "b", "cap", "period", "load"),
    [
        (v_shape(), 2, 4, 3, 3),
        (three_forward(), 2, 4, 5, 5),
        (embedding_on_all(), 3, 4, 10, 8),
        (embedding_on_all(), 3, 3, 12, 8),
        (embedding_on_all(), 3, 1, 20, 8),
        (embedding_on_all(), 3, None, 8, 8),
        (embedding_on_all(8), 3, 8, 10, 8),
    ],
)
def test_the_period_is_proven_to_be_the_shortest(pipeline, b, cap, period, load):
    grid = on_grid(pipeline, durations(pipeline, b=b))
    assert grid.load(pipeline) == load
    found = periodic(pipeline, grid, [cap] * len(pipeline.devices), effort=2)
    assert (found.period, found.bound, found.proven) == (period, period, True)
    long = dataclasses.replace(pipeline, micro_batches=20)
    unrolled_order = unrolled(long, found)
    order.check(long, unrolled_order)
    assert cap is None or max(order.in_flight(long, unrolled_order).values()) <= cap
    length = order.makespan(order.timeline(long, unrolled_order, grid.durations))
    assert length <= 19 * period + found.latency


def test_equal_inputs_give_equal_schedules():
    pipeline = embedding_on_all()
    lengths = {kind: 0.37 + 0.11 * place for place, kind in enumerate(sorted(durations(pipeline)))}
    first, second = (periodic(pipeline, on_grid(pipeline, lengths), [4] * 5, effort=1) for _ in range(2))
    assert first == second


def test_durations_in_whole_numbers_stay_exact_and_others_are_rounded():
    pipeline = v_shape(2)
    grid = on_grid(pipeline, durations(pipeline, 30, 60), {(0, 1): 10})
    assert grid.exact
    assert grid.unit == 10.0
    assert set(grid.durations.values()) == {3, 6}
    assert grid.transfers == {(0, 1): 1}
    grid = on_grid(pipeline, durations(pipeline, 0.1, 0.2))
    assert not grid.exact
    assert set(grid.durations.values()) == {80, 160}


def test_a_transfer_makes_the_latency_longer_and_not_the_period():
    pipeline = v_shape(3)
    near = periodic(pipeline, on_grid(pipeline, durations(pipeline)), [None] * 3, effort=1)
    far = periodic(pipeline, on_grid(pipeline, durations(pipeline), {(0, 1): 2, (1, 0): 3}), [None] * 3, effort=1)
    assert (far.period, near.period) == (3, 3)
    # The chain alone is 14 long; device 0 is never idle, so that its B ends a whole number of periods after F starts.
    assert (far.latency, near.latency) == (15, 9)


def every_order(pipeline):
    """All orders in which micro-batches keep theirs, by exhaustion."""
    blocks = pipeline.blocks()

    def extend(done, left):
        if not left:
            yield tuple(done)
        for block in sorted(left):
            earlier = block.micro_batch and block._replace(micro_batch=block.micro_batch - 1) in left
            if not earlier and not any(need in left for need in pipeline.needs(block)):
                yield from extend([*done, block], left - {block})

    yield from extend([], frozenset(blocks))


@pytest.mark.parametrize(
    ("devices", "lengths"),
    [([(0,), (1,), (0,)], [3, 1, 2, 5, 2, 4]), ([(0, 1), (0,), (1,)], [1, 4, 2, 3, 5, 1])],
)
def test_no_order_of_two_micro_batches_is_shorter_than_the_exact_one(devices, lengths):
    pipeline = Pipeline.chain(devices, 2)
    given = dict(zip(sorted(durations(pipeline)), lengths, strict=True))
    least = min(order.makespan(order.timeline(pipeline, each, given)) for each in every_order(pipeline))
    known = order.greedy(pipeline, given, [1, 1, 1])
    found, bound = exact(pipeline, on_grid(pipeline, given), [None] * 3, 2, known)
    assert order.makespan(order.timeline(pipeline, found, given)) == least == bound
    assert lower_bound(pipeline, given, {}) <= least


def test_the_best_order_of_a_v_is_1f1b_and_proven_without_a_solver():
    pipeline = v_shape(4, 16)
    found = order.best(pipeline, durations(pipeline), caps=[4, 3, 2, 1], candidates={"1F1B": order.one_f_one_b(4, 16)})
    assert (found.makespan, found.bound, found.proven) == (57.0, 57.0, True)
    assert (found.origin, found.schedule) == ("1F1B", None)


def test_a_candidate_beyond_the_caps_is_not_taken():
    pipeline = embedding_on_all(4, 12)
    candidates = {"interlaced": order.interlaced(5, 12, [0])}
    free = order.best(pipeline, durations(pipeline, b=3), candidates=candidates, effort=0.2)
    tight = order.best(pipeline, durations(pipeline, b=3), caps=[4] * 5, candidates=candidates, effort=0.2)
    assert free.makespan < tight.makespan
    assert max(order.in_flight(pipeline, tight.order).values()) == 4
    assert tight.schedule.period == 10


def test_where_the_exact_solver_ends_its_bound_is_reported():
    pipeline = embedding_on_all(2, 2)
    found = order.best(pipeline, durations(pipeline, b=3))
    assert found.proven
    assert found.makespan == found.bound > lower_bound(pipeline, durations(pipeline, b=3), {})
