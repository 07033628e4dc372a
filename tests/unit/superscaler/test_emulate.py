"""Programs in the emulator: one node per rank or folded, the same picoseconds; times, traffic and words."""

from __future__ import annotations

from pathlib import Path

import pytest

from emulation.evaluate import simulate
from engines.superscaler import emulate
from engines.superscaler.emulate.box import box
from engines.superscaler.emulate.targets import Message, OnBox
from engines.superscaler.layout import Mesh
from engines.superscaler.plan import Block
from harness.api import PlanError
from harness.hardware import load_profile

from .pipelines import BATCH, INNER, WIDTH, pipeline, table

PROFILES = Path(__file__).parents[3] / "specs" / "hardware"


@pytest.fixture(autouse=True)
def _linear(monkeypatch):
    table(monkeypatch)


@pytest.fixture(scope="module")
def nvlink():
    return load_profile("v100x8-nvlink")


@pytest.mark.parametrize(("stages", "data", "tensor"), [(1, 1, 1), (1, 4, 2), (2, 2, 2), (4, 1, 2), (2, 4, 1)])
@pytest.mark.parametrize("templates", [True, False])
def test_folded_and_rank_by_rank_give_the_same_picoseconds(nvlink, stages, data, tensor, templates):
    program = pipeline(stages, data, tensor, templates=templates)
    folded = emulate.workload(program, nvlink, form="folded")
    ranks = emulate.workload(program, nvlink, form="ranks")
    assert simulate(folded.work, nvlink).picoseconds == simulate(ranks.work, nvlink).picoseconds
    assert folded.work.nodes() == len(ranks.work.nodes)


def test_micro_batches_share_their_parts(nvlink):
    folded = emulate.workload(pipeline(2, 2, 2, micro_batches=5), nvlink)
    chains = {}
    for item, told in zip(folded.work.items, folded.told, strict=True):
        if item.parts:
            chains.setdefault(told.block and (told.block.stage, told.block.what), set()).add(id(item.parts))
    assert all(len(found) == 1 for key, found in chains.items() if key)


def test_nodes_are_told_in_the_words_of_the_plan(nvlink):
    ranks = emulate.workload(pipeline(2, 1, 2, micro_batches=1), nvlink, form="ranks")
    assert len(ranks.told) == len(ranks.work.nodes)
    told = {(told.block, told.text, told.communicates) for told in ranks.told}
    assert (Block(0, 0, "F"), "F 0 of part 0", False) in told
    assert (Block(0, 0, "F"), "transfer of down0", True) in told
    assert (Block(1, 0, "B"), "transfer of gradient of down0", True) in told
    assert (None, "update", False) in told


def test_kernels_are_those_of_the_operator_table_for_the_part_of_a_rank(nvlink):
    ranks = emulate.workload(pipeline(1, 2, 2, micro_batches=1), nvlink, form="ranks")
    of = {node.name: node for node in ranks.work.nodes if node.kind == "compute" and node.family == "matmul"}
    assert of["up0.linear"].flops == 2 * (BATCH // 2) * WIDTH * (INNER // 2)
    assert of["down0.linear"].shape == (BATCH // 2, WIDTH, INNER // 2)
    back = [node for node in ranks.work.nodes if node.family == "matmul-backward"]
    assert {node.flops for node in back} == {2 * of["up0.linear"].flops}


def test_a_stage_waits_for_what_it_is_sent_and_its_sender_does_not(nvlink):
    lowered = emulate.workload(pipeline(2, 1, 1, micro_batches=2), nvlink, form="ranks")
    result = simulate(lowered.work, nvlink)
    at = {}
    for node, told in enumerate(lowered.told):
        at.setdefault((told.block, told.communicates), []).append(node)
    sent = at[Block(0, 0, "F"), True][0]
    assert result.start(at[Block(1, 0, "F"), False][0]) == result.finish(sent)
    assert result.start(at[Block(0, 1, "F"), False][0]) < result.finish(sent)


def test_meshes_of_several_shapes_fit_one_box():
    eight = tuple(range(8))
    found = box([Mesh(eight, (2, 4)), Mesh(eight, (4, 2)), Mesh((4, 5), (2,)), Mesh((0, 4), (2,))])
    assert found is not None
    assert dict(zip(found.names, found.sizes, strict=True)) == {"by4": 2, "by2": 2, "by1": 2}
    assert found.place(Mesh(eight, (4, 2))).axes == (("by4", "by2"), ("by1",))
    assert found.place(Mesh((4, 5), (2,))).fixed == (("by4", 1), ("by2", 0))
    assert box([Mesh((0, 1, 2), (3,)), Mesh((2, 3), (2,))]) is None
    assert box([Mesh((1, 2), (2,)), Mesh((0, 3), (2,))]) is None
    assert box([Mesh((0, 1, 3), (3,)), Mesh((2,), (1,))]) is None


def test_stages_that_fit_no_box_are_emulated_rank_by_rank(nvlink):
    program = pipeline(2, meshes=(Mesh((0, 3), (2, 1)), Mesh((1, 2), (2, 1))))
    with pytest.raises(PlanError, match="2 x 1 are not slices of one box"):
        emulate.workload(program, nvlink, form="folded")
    assert emulate.seconds(program, nvlink).seconds > 0


def test_a_cluster_that_is_too_small_is_refused(nvlink):
    with pytest.raises(PlanError, match="plan is for 32 devices; profile 'v100x8-nvlink' has 8"):
        emulate.workload(pipeline(4, 4, 2), nvlink)


def test_bytes_of_every_rank():
    found = emulate.traffic(pipeline(2, 2, 2, micro_batches=3))
    activation = BATCH // 2 * WIDTH * 4
    weights = 2 * (WIDTH * INNER // 2) * 4
    first, second = found[0], found[7]
    # Two members: an all-reduce receives as much as a rank holds. Forward in both stages, backward in the second.
    assert first.received == {"all-reduce": 3 * activation + weights, "transfer": 3 * activation}
    assert second.received == {"all-reduce": 6 * activation + weights, "transfer": 3 * activation}
    assert first.sent == first.received
    assert sum(t.sent.total() for t in found.values()) == sum(t.received.total() for t in found.values())


def test_busy_and_bubble_of_a_pipeline(nvlink):
    estimate = emulate.seconds(pipeline(2, 2, 2, micro_batches=4), nvlink)
    assert sum(estimate.stands_for.values()) == 8
    assert 0 < estimate.bubble < 1
    assert all(spent <= estimate.seconds for spent in estimate.busy.values())


def test_messages_that_set_ranks_apart_can_be_spread_evenly():
    found = box([Mesh((0, 1, 2, 3), (2, 2)), Mesh((4, 5, 6, 7), (2, 2))])
    devices = {number: f"host0/gpu{number}" for number in range(8)}
    crossed = [Message(source, 7 - source, 10) for source in range(4)]
    exact, even = (OnBox(found, devices, even=even) for even in (False, True))
    assert len(exact.messages(crossed, (), "m")) == 4
    assert len(even.messages(crossed, (), "m")) == 1
    assert even.work.items[0].nbytes == 10
    # Where ranks send different amounts, they are not alike anyway.
    uneven = [Message(0, 4, 10), Message(1, 5, 30)]
    assert len(even.messages(uneven, (), "m")) == 2


def test_processes_that_share_cores_are_emulated_rank_by_rank():
    profile = load_profile("epyc-2-core-vm")
    program = pipeline(2, 1, 1, micro_batches=2)
    lowered = emulate.workload(program, profile)
    assert len(lowered.told) == len(lowered.work.nodes)
    estimate = emulate.estimate(lowered, simulate(lowered.work, profile))
    assert estimate.stands_for == {0: 1, 1: 1}
    assert 0 < estimate.bubble < 1
