"""Our schedules against the tables of torch.distributed.pipelining: never longer, with passes of equal length."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from engines.superscaler import order
from engines.superscaler.order import Pipeline
from engines.superscaler.plan import Block

pytest.importorskip("torch.distributed.pipelining")
from torch.distributed.pipelining import schedules

PASSES = {"FORWARD": "F", "BACKWARD_INPUT": "B", "BACKWARD_WEIGHT": "W", "FULL_BACKWARD": "BW"}


def table(kind, groups, chunks, micro_batches):
    """A schedule of torch's as lists of blocks; its whole backward pass is both of our halves."""
    made = kind.__new__(kind)
    made.pp_group_size, made.n_local_stages, made._n_microbatches = groups, chunks, micro_batches
    made.num_stages = groups * chunks
    made._num_stages = groups * chunks
    made._stages = [SimpleNamespace() for _ in range(chunks)]
    made.number_of_rounds = max(1, micro_batches // groups)
    made.microbatches_per_round = micro_batches // made.number_of_rounds
    return {
        rank: [
            Block(action.stage_index, action.microbatch_index, what)
            for action in made._calculate_single_rank_operations(rank)
            if action is not None
            for what in PASSES[action.computation_type.name]
        ]
        for rank in range(groups)
    }


def length(pipeline, found, backward):
    order.check(pipeline, found)
    times = {"F": 1, "B": backward, "W": 1}
    durations = {(stage, what): times[what] for stage, each in enumerate(pipeline.passes) for what in each}
    return order.makespan(order.timeline(pipeline, found, durations))


@pytest.mark.parametrize(("groups", "micro_batches"), [(2, 4), (4, 8), (4, 16)])
def test_interleaved_1f1b(groups, micro_batches):
    lists = table(schedules.ScheduleInterleaved1F1B, groups, 2, micro_batches)
    whole = {rank: [block for block in blocks if block.what != "W"] for rank, blocks in lists.items()}
    pipeline = Pipeline.chain([(group,) for group in order.looped(2 * groups, groups)], micro_batches)
    theirs = length(pipeline, order.merge(pipeline, whole), 2)
    assert length(pipeline, order.interleaved(2 * groups, micro_batches, 2), 2) <= theirs


@pytest.mark.parametrize(("groups", "micro_batches"), [(2, 4), (4, 8), (4, 16)])
def test_zero_bubble_with_one_stage_on_each_device(groups, micro_batches):
    lists = table(schedules.ScheduleInterleavedZeroBubble, groups, 1, micro_batches)
    pipeline = Pipeline.chain([(group,) for group in range(groups)], micro_batches, "FBW")
    theirs = length(pipeline, order.merge(pipeline, lists), 1)
    assert length(pipeline, order.zero_bubble(groups, micro_batches), 1) <= theirs


@pytest.mark.parametrize(("groups", "micro_batches"), [(2, 3), (2, 4), (4, 8), (4, 16)])
def test_zb_v(groups, micro_batches):
    lists = table(schedules.ScheduleZBVZeroBubble, groups, 2, micro_batches)
    pipeline = Pipeline.chain([(group,) for group in order.folded(2 * groups)], micro_batches, "FBW")
    theirs = order.merge(pipeline, lists)
    ours = order.zero_bubble_v(2 * groups, micro_batches)
    assert length(pipeline, ours, 1) <= length(pipeline, theirs, 1)
    assert max(order.held(pipeline, ours).values()) <= max(order.held(pipeline, theirs).values())
