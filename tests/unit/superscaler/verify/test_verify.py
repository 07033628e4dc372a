"""Named plans of a small model hold; what is wrong with a list is said in plain words, on the right level."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engines.superscaler import order
from engines.superscaler.dependency import preserve
from engines.superscaler.layout import Mesh
from engines.superscaler.plan import Group, Plan, Stage, Weight
from engines.superscaler.program import Collective, Exchange, Local, RunPart
from engines.superscaler.projection import project
from engines.superscaler.verify import verify

PAIR = Mesh((0, 1), (2,))
DATA = {"up": ("b",), "gelu": ("b",), "down": ("b",), "mean": ("b",)}
TENSOR = {"up": ("n",), "gelu": ("n",), "down": ("n",), "mean": ("",)}


def one_stage(graph, mesh, splits, weights=None, groups=(), micro_batches=2):
    stage = Stage("all", tuple(op.name for op in graph.ops), mesh, splits, groups, weights or {})
    return Plan(graph.digest, (stage,), micro_batches, order.gpipe(1, micro_batches))


def pipeline(graph, second=(2, 3), found=None):
    first = Stage("first", ("up", "gelu"), PAIR, {"up": ("n",), "gelu": ("n",)})
    last = Stage("last", ("down", "mean"), Mesh(second, (2,)), {"down": ("b",), "mean": ("b",)})
    return Plan(graph.digest, (first, last), 3, found or order.one_f_one_b(2, 3))


PLANS = {
    "data parallel": lambda graph: one_stage(graph, PAIR, DATA),
    "tensor parallel": lambda graph: one_stage(graph, PAIR, TENSOR),
    "both": lambda graph: one_stage(
        graph, Mesh((3, 1, 0, 2), (2, 2)), {name: (DATA[name][0], TENSOR[name][0]) for name in DATA}
    ),
    "ZeRO-1": lambda graph: one_stage(graph, PAIR, DATA, {"w1": Weight(((0, 0),)), "w2": Weight(((0, 1),))}),
    "ZeRO-3": lambda graph: one_stage(graph, PAIR, DATA, {"w1": Weight(((0, 0),), True, True)}),
    "co-shard": lambda graph: one_stage(
        graph, PAIR, DATA, groups=(Group(("up", "gelu", "down"), 2, {"up": "n", "gelu": "n", "down": "n"}),)
    ),
    "recompute": lambda graph: one_stage(graph, PAIR, TENSOR, groups=(Group(("up", "gelu", "down")),)),
    "mixed": lambda graph: one_stage(
        graph,
        Mesh((0, 1, 2, 3), (2, 2)),
        {"up": ("k", "n"), "gelu": ("b", "b"), "down": ("n", "k"), "mean": ("b", "k")},
    ),
    "1F1B": pipeline,
    "shared devices": lambda graph: pipeline(graph, (1, 2)),
    "zero bubble": lambda graph: pipeline(graph, found=order.zero_bubble(2, 3)),
}


def lowered(graph, name):
    program = preserve(graph, PLANS[name](graph))
    return program, {rank: list(project(program, rank)) for rank in program.plan.devices}


@pytest.mark.parametrize("name", PLANS)
def test_a_sound_plan_holds_on_all_levels(graph, name):
    report = verify(*[lowered(graph, name)[0]], level=2)
    assert report.ok, report.render()
    assert set(report.seconds) == {0, 1, 2}
    assert "verified up to L2" in report.render()


def found(program, lists, level=2):
    report = verify(program, level, lists)
    assert not report.ok
    return report.findings


def where(lists, rank, kind, test=lambda step: True):
    return next(index for index, step in enumerate(lists[rank]) if isinstance(step, kind) and test(step))


def test_a_run_that_does_not_exist_is_found_before_anything_else(graph):
    program, lists = lowered(graph, "data parallel")
    index = where(lists, 1, RunPart)
    lists[1][index] = replace(lists[1][index], run=99)
    report = verify(program, 2, lists)
    assert [(f.level, f.rank, f.index, f.message) for f in report.findings] == [(0, 1, index, "there is no run 99")]
    assert set(report.seconds) == {0}
    assert "were not run" in report.render()


def test_an_addend_that_is_missing_is_named(graph):
    program, lists = lowered(graph, "tensor parallel")
    for rank in (0, 1):
        index = where(lists, rank, Collective, lambda step: step.source.tensor == "y")
        step = lists[rank][index]
        lists[rank][index] = Local("slice", (step.source,), (step.target,), tuple((0, n) for n in step.shape))
    first = found(program, lists)[0]
    assert (first.level, first.invariant, first.rank) == (1, "I1", 0)
    assert "has only the part of 'down', tensor 0 of micro-batch 0 over [0:6] of [0:12]" in first.message


def test_what_counts_twice_is_named(graph):
    program, lists = lowered(graph, "tensor parallel")
    for rank in (0, 1):
        index = where(lists, rank, Collective, lambda step: step.source.tensor == "y")
        lists[rank].insert(index + 1, replace(lists[rank][index], source=lists[rank][index].target))
    first = found(program, lists)[0]
    assert first.level == 1
    assert "counts twice the part of 'down', tensor 0 of micro-batch 0" in first.message


def test_a_circle_of_waits_is_told_rank_by_rank(graph):
    program, lists = lowered(graph, "1F1B")
    sends = [index for index, step in enumerate(lists[0]) if isinstance(step, Exchange)]
    one, other = sends[0], sends[1]
    lists[0][one], lists[0][other] = lists[0][other], lists[0][one]
    messages = [finding.message for finding in found(program, lists) if finding.level == 2]
    assert any("can go on: rank" in message and "waits in instruction" in message for message in messages)


def test_a_rank_that_has_ended_is_what_another_waits_for(graph):
    program, lists = lowered(graph, "data parallel")
    del lists[1][where(lists, 1, Collective) :]
    messages = [finding.message for finding in found(program, lists) if finding.level == 2]
    assert any("rank 1 has come to its end" in message for message in messages)


def test_an_exchange_posts_sends_and_receives_as_one(graph):
    # In the steady state of 1F1B two ranks send to each other: one after another, without buffers, they would wait.
    program, lists = lowered(graph, "1F1B")
    assert verify(program, 2, lists).ok


def test_members_that_call_different_collectives_are_told_how_they_differ(graph):
    program, lists = lowered(graph, "data parallel")
    index = where(lists, 1, Collective)
    lists[1][index] = replace(lists[1][index], dtype="fp16")
    (first,) = found(program, lists)
    assert (first.level, first.invariant) == (2, "I6")
    assert "with dtype fp16, rank 0 has fp32" in first.message


def test_the_wrong_mean_over_micro_batches(graph):
    program, lists = lowered(graph, "data parallel")
    index = where(lists, 0, Local, lambda step: step.kind == "seed")
    lists[0][index] = replace(lists[0][index], value=1.0)
    (first,) = found(program, lists)
    assert (first.invariant, first.rank, first.index) == ("I8", 0, index)
    assert "wants 0.5" in first.message


def test_a_micro_batch_that_is_not_in_a_gradient(graph):
    program, lists = lowered(graph, "data parallel")
    for rank in (0, 1):
        indices = [i for i, step in enumerate(lists[rank]) if isinstance(step, Local) and step.kind == "accumulate"]
        del lists[rank][indices[-1]]
    assert any(f.invariant == "I7" and "of micro-batch 1" in f.message for f in found(program, lists))


def test_what_is_left_behind_and_what_is_gone(graph):
    program, lists = lowered(graph, "data parallel")
    index = where(lists, 0, Local, lambda step: step.kind == "free")
    del lists[0][index]
    assert any(f.invariant == "I11" and "never frees" in f.message for f in found(program, lists))
    program, lists = lowered(graph, "data parallel")
    lists[0].insert(0, lists[0].pop(where(lists, 0, Local, lambda step: step.kind == "free")))
    assert any(f.invariant == "I3" and "is not there" in f.message for f in found(program, lists))


def test_a_part_that_another_rank_computes(graph):
    program, lists = lowered(graph, "data parallel")
    index = where(lists, 1, RunPart)
    lists[1][index] = replace(lists[1][index], place=(0,))
    (first,) = found(program, lists)
    assert (first.level, first.invariant) == (0, "I4")


def test_an_addend_may_not_be_copied_over_what_came_before(graph):
    program, lists = lowered(graph, "mixed")
    rank, index = next(
        (rank, index)
        for rank, own in lists.items()
        for index, step in enumerate(own)
        if isinstance(step, Exchange) and any(piece.add for piece in step.receives)
    )
    step = lists[rank][index]
    copied = tuple(replace(piece, add=False) for piece in step.receives)
    lists[rank][index] = replace(step, receives=copied)
    assert any(f.rank == rank and f.invariant in ("I2", "I5") for f in found(program, lists))


def test_level_3_needs_the_module(graph):
    report = verify(lowered(graph, "data parallel")[0], 3)
    assert report.ok
    assert report.level == 2
    assert "needs the module" in report.render()
