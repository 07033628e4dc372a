"""Named schedules against closed forms; what `check` and `merge` refuse."""

from __future__ import annotations

import pytest

from engines.superscaler import order
from engines.superscaler.order import Pipeline
from engines.superscaler.plan import Block
from harness.api import PlanError

SIZES = [(1, 1), (1, 4), (2, 2), (3, 4), (4, 8), (5, 3), (4, 9)]


def durations(pipeline, f=1.0, b=2.0, w=1.0):
    return {
        (stage, what): {"F": f, "B": b, "W": w}[what] for stage, each in enumerate(pipeline.passes) for what in each
    }


def own_devices(stages, micro_batches, passes="FB"):
    return Pipeline.chain([(stage,) for stage in range(stages)], micro_batches, passes)


def checked(pipeline, found, **lengths):
    order.check(pipeline, found)
    return order.timeline(pipeline, found, durations(pipeline, **lengths))


@pytest.mark.parametrize(("stages", "micro_batches"), SIZES)
@pytest.mark.parametrize("name", ["gpipe", "one_f_one_b"])
def test_makespan_and_bubble_are_the_closed_forms(name, stages, micro_batches):
    pipeline = own_devices(stages, micro_batches)
    placed = checked(pipeline, getattr(order, name)(stages, micro_batches), f=3.0, b=5.0)
    assert order.makespan(placed) == (micro_batches + stages - 1) * 8.0
    assert order.bubble(pipeline, placed) == pytest.approx((stages - 1) / (micro_batches + stages - 1))


@pytest.mark.parametrize(("stages", "micro_batches"), SIZES)
def test_1f1b_keeps_one_micro_batch_for_every_later_stage_and_gpipe_all(stages, micro_batches):
    pipeline = own_devices(stages, micro_batches)
    kept = order.in_flight(pipeline, order.one_f_one_b(stages, micro_batches))
    assert kept == {stage: min(stages - stage, micro_batches) for stage in range(stages)}
    kept = order.in_flight(pipeline, order.gpipe(stages, micro_batches))
    assert set(kept.values()) == {micro_batches}


@pytest.mark.parametrize(("stages", "micro_batches"), SIZES)
def test_forward_only_takes_one_pass_for_every_micro_batch_and_later_stage(stages, micro_batches):
    pipeline = own_devices(stages, micro_batches, "F")
    placed = checked(pipeline, order.forward_only(stages, micro_batches))
    assert order.makespan(placed) == micro_batches + stages - 1
    assert order.in_flight(pipeline, order.forward_only(stages, micro_batches)) == {}


@pytest.mark.parametrize(("stages", "micro_batches"), [(2, 2), (3, 4), (4, 4), (4, 9), (8, 16)])
def test_zb_h1_has_a_third_of_the_bubble_of_1f1b_in_the_same_room(stages, micro_batches):
    pipeline = own_devices(stages, micro_batches, "FBW")
    found = order.zero_bubble(stages, micro_batches)
    assert order.makespan(checked(pipeline, found, b=1.0)) == 3 * micro_batches + stages - 1
    assert max(order.in_flight(pipeline, found).values()) == stages


@pytest.mark.parametrize(("groups", "micro_batches"), [(1, 2), (2, 4), (3, 6), (4, 8), (4, 11)])
def test_zb_v_has_no_bubble_but_that_of_the_first_pass(groups, micro_batches):
    stages = 2 * groups
    pipeline = Pipeline.chain([(group,) for group in order.folded(stages)], micro_batches, "FBW")
    found = order.zero_bubble_v(stages, micro_batches)
    assert order.makespan(checked(pipeline, found, b=1.0)) == 6 * micro_batches + groups - 1
    assert max(order.held(pipeline, found).values()) == 2 * groups


@pytest.mark.parametrize(("groups", "chunks", "micro_batches"), [(2, 2, 4), (4, 2, 8), (3, 3, 9)])
def test_interleaving_divides_the_bubble_by_the_chunks(groups, chunks, micro_batches):
    stages = groups * chunks
    pipeline = Pipeline.chain([(group,) for group in order.looped(stages, groups)], micro_batches)
    placed = checked(pipeline, order.interleaved(stages, micro_batches, chunks))
    assert order.makespan(placed) == 3.0 * chunks * micro_batches + 3.0 * (groups - 1)


@pytest.mark.parametrize(("groups", "passes"), [(1, 3), (2, 3), (4, 3), (6, 3), (7, 3), (4, 2)])
def test_3f1b_has_no_bubble_in_the_steady_state(groups, passes):
    stages = groups * passes
    kinds = ["F"] * (stages - groups) + ["FB"] * groups
    ends = []
    for micro_batches in (20, 30):
        pipeline = Pipeline.chain([(group,) for group in order.looped(stages, groups)], micro_batches, kinds)
        found = order.recycling(stages, micro_batches, passes)
        ends.append(order.makespan(checked(pipeline, found)))
        kept = order.in_flight(pipeline, found)
        assert kept == {stages - groups + place: groups - place for place in range(groups)}
    assert ends[1] - ends[0] == 10 * (passes + 2)


@pytest.mark.parametrize("shared", [(0,), (5,), (0, 5), (0, 3), (0, 1, 4, 5)])
def test_an_interlaced_round_is_one_own_and_all_shared_stages_long(shared):
    stages = 6
    own = [stage for stage in range(stages) if stage not in shared]
    devices = [range(len(own)) if stage in shared else (own.index(stage),) for stage in range(stages)]
    ends = []
    for micro_batches in (20, 30):
        pipeline = Pipeline.chain(devices, micro_batches)
        found = order.interlaced(stages, micro_batches, shared)
        ends.append(order.makespan(checked(pipeline, found, b=3.0)))
        kept = order.in_flight(pipeline, found)
        assert [kept[stage] for stage in own] == [2 * (len(own) - 1 - place) + 1 for place in range(len(own))]
    assert ends[1] - ends[0] == 10 * 4 * (1 + len(shared))


def test_a_transfer_delays_what_needs_it_and_nothing_else():
    pipeline = own_devices(2, 1)
    found = order.gpipe(2, 1)
    placed = order.timeline(pipeline, found, durations(pipeline), {(0, 1): 0.5, (1, 0): 0.25})
    assert [(each.start, each.end) for each in placed] == [(0, 1), (1.5, 2.5), (2.5, 4.5), (4.75, 6.75)]


def test_check_names_the_two_blocks_that_stand_the_wrong_way_round():
    found = list(order.one_f_one_b(2, 2))
    first, second = found.index(Block(0, 1, "F")), found.index(Block(1, 1, "F"))
    found[first], found[second] = found[second], found[first]
    with pytest.raises(PlanError, match=r"F of stage 1, micro-batch 1 stands at .* before F of stage 0, micro-batch 1"):
        order.check(own_devices(2, 2), found)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found[:-1], "B of stage 0, micro-batch 1 is not in the order, nor are 0 other blocks"),
        (lambda found: (*found, found[0]), "F of stage 0, micro-batch 0 is twice in the order, at 0 and 8"),
        (lambda found: (*found, Block(0, 2, "F")), "micro-batch 2 is in the order, but the plan has no such block"),
        (lambda found: (*found, Block(0, 1, "W")), "stage 0 has the passes F, B"),
        (lambda found: (*found, Block(7, 1, "F")), "it has 2 stages and 2 micro-batches"),
    ],
)
def test_check_says_what_is_missing_or_too_much(change, message):
    with pytest.raises(PlanError, match=message):
        order.check(own_devices(2, 2), change(order.one_f_one_b(2, 2)))


def test_merge_names_a_circle():
    pipeline = own_devices(2, 2)
    lists = {
        0: [Block(0, 0, "F"), Block(0, 0, "B"), Block(0, 1, "F"), Block(0, 1, "B")],
        1: [Block(1, 0, "F"), Block(1, 1, "F"), Block(1, 0, "B"), Block(1, 1, "B")],
    }
    with pytest.raises(PlanError, match=r"circle: .*F of stage 0, micro-batch 1, then F of stage 1, micro-batch 1"):
        order.merge(pipeline, lists)


def test_merge_wants_every_block_of_a_device_once_and_no_other():
    pipeline = own_devices(2, 1)
    with pytest.raises(PlanError, match="B of stage 1, micro-batch 0 is not in the list of device 1"):
        order.merge(pipeline, {0: [Block(0, 0, "F"), Block(0, 0, "B")], 1: [Block(1, 0, "F")]})
    lists = {0: [Block(0, 0, "F"), Block(0, 0, "B")], 1: [Block(0, 0, "F"), Block(1, 0, "F"), Block(1, 0, "B")]}
    with pytest.raises(PlanError, match="F of stage 0, micro-batch 0 is in the list of device 1"):
        order.merge(pipeline, lists)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: order.interleaved(4, 5, 2), "5 micro-batches is not a multiple; the nearest are 4 and 6"),
        (lambda: order.interleaved(5, 4, 2), "5 stages cannot be 2 on each"),
        (lambda: order.zero_bubble_v(3, 4), "3 is not an even number"),
        (lambda: order.recycling(4, 4), "4 stages are not the same number for each of 3 passes"),
        (lambda: order.interlaced(3, 4, (3,)), "there is no stage 3"),
        (lambda: order.interlaced(2, 4, (0, 1)), "at least one must have devices of its own"),
        (lambda: order.one_f_one_b(0, 4), "at least one stage"),
        (lambda: order.greedy(own_devices(1, 1), {}, [0]), "room for 0 micro-batches"),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(PlanError, match=message):
        make()


@pytest.mark.parametrize(("stages", "micro_batches"), SIZES)
def test_list_scheduling_with_the_room_of_1f1b_is_as_fast(stages, micro_batches):
    pipeline = own_devices(stages, micro_batches)
    caps = [stages - stage for stage in range(stages)]
    found = order.greedy(pipeline, durations(pipeline), caps)
    assert order.makespan(checked(pipeline, found)) <= 3.0 * (micro_batches + stages - 1)
    assert all(kept <= caps[stage] for stage, kept in order.in_flight(pipeline, found).items())
