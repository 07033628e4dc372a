"""Plans by hand, and what phase 3 makes of them."""

from collections import Counter
from dataclasses import replace

import pytest

from engines.superscaler import named, plan_file, scheduling, transformation
from engines.superscaler.dependency import preserve
from engines.superscaler.draft import Draft
from engines.superscaler.effects import effects
from engines.superscaler.plan import Block
from engines.superscaler.program import Collective, Compute, Exchange, Free, Local, Move, Transfer
from engines.superscaler.projection import project
from harness.api import PlanError

from .perceptrons import perceptron

RECIPE = {
    "stages": [
        {"ops": ["*"], "devices": "0-1", "axes": {"tensor": 2}},
        {"ops": ["layers.1.*", "sub", "square", "mean.*"], "devices": [2, 3], "axes": {"tensor": 2}},
    ],
    "splits": [
        {"ops": "*.up", "on": "n", "axis": "tensor"},
        {"ops": "*.activation", "on": "d1", "axis": "tensor"},
        {"ops": "*.down", "on": "k", "axis": "tensor"},
    ],
    "order": "1f1b",
}


@pytest.fixture(scope="module")
def graph():
    return perceptron()


def moves(program):
    return Counter(a.kind for s in program.sections for a in s.actions if isinstance(a, Move))


def test_a_plan_by_hand_takes_few_lines(graph):
    draft = Draft(graph, micro_batches=2)
    scheduling.assign(draft, "layers.0.*", devices=(0, 1), axes={"tensor": 2})
    scheduling.assign(draft, ["layers.1.*", "sub", "square", "mean.*"], devices=(2, 3), axes={"tensor": 2})
    transformation.partition(draft, "*.up", "n", axis="tensor")
    transformation.partition(draft, "*.activation", "d1", axis="tensor")
    transformation.partition(draft, "*.down", "k", axis="tensor")
    transformation.recompute(draft, "layers.0.*")
    scheduling.order(draft, "1f1b")
    program = preserve(graph, draft.plan())
    # Megatron's g forward and f backward, each once per layer and micro-batch; the first layer's input needs no f, but
    # its g is done again. Nothing is left to reduce after the last micro-batch but nothing: weights are not repeated.
    assert moves(program)["all-reduce"] == 2 * (2 + 1 + 1) + bias_sums(program)


def bias_sums(program):
    """The bias of a row-parallel layer is added by one device, so its gradient comes in addends."""
    return sum(isinstance(a, Move) and a.kind == "all-reduce" for a in program.sections[-1].actions)


def test_a_recipe_says_the_same_as_the_functions(graph):
    by_hand = plan_file.from_recipe(RECIPE, graph, devices=4, micro_batches=2)
    assert [stage.mesh.devices for stage in by_hand.stages] == [(0, 1), (2, 3)]
    assert by_hand.stages[1].splits["layers.1.down"] == ("k",)
    assert plan_file.from_json(plan_file.to_json(by_hand)) == by_hand


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"splits": [{"ops": "*.up", "on": "m", "axis": "tensor"}]}, "cannot be split on 'm', only on"),
        ({"splits": [{"ops": "*.upp", "on": "n", "axis": "tensor"}]}, r"no operator matches '\*.upp'"),
        ({"splits": [{"ops": "*.up", "on": "n", "axis": "tensr"}]}, "did you mean 'tensor'"),
        ({"stages": [{"ops": "*", "devices": [0, 0]}], "splits": []}, "has device 0 twice"),
        ({"stages": [{"ops": "*", "devices": [0, 9]}]}, "has device 9, but there are 4"),
        ({"stages": [{"ops": "*", "devices": [0, 1, 2], "axes": {"tensor": 3}}]}, "of size"),
        ({"stages": [{"ops": "layers.0.*", "devices": [0]}], "splits": []}, "has no stage"),
        ({"stages": [{"op": "*"}]}, "did you mean 'ops'"),
        ({"order": "1f1bb"}, "did you mean '1f1b'"),
        ({"order": [[0, 0, "F"]]}, "the order lacks the backward of stage 'stage 0' for micro-batch 0"),
    ],
)
def test_a_wrong_recipe_says_what_would_do(graph, change, message):
    if change.get("stages", [{}])[0].get("axes") == {"tensor": 3}:
        graph = perceptron(batch=7)
        change = {**change, "splits": [{"ops": "*.up", "on": "*0", "axis": "tensor"}]}
    with pytest.raises(PlanError, match=message):
        preserve(graph, plan_file.from_recipe({**RECIPE, **change}, graph, devices=4, micro_batches=2))


def test_an_order_against_dependence_names_both_blocks(graph):
    plan = plan_file.from_recipe(RECIPE, graph, devices=4, micro_batches=1)
    order = list(plan.order)
    order[0], order[1] = order[1], order[0]
    recipe = {**RECIPE, "order": [list(block) for block in order]}
    with pytest.raises(PlanError, match=r"has the forward of stage 'stage 1' .* before the forward of stage 'stage 0'"):
        preserve(graph, plan_file.from_recipe(recipe, graph, devices=4))


def test_stages_that_need_each_other_are_refused(graph):
    recipe = {
        **RECIPE,
        "stages": [{"ops": "*", "devices": [0]}, {"ops": "layers.0.activation", "devices": [1]}],
        "splits": [],
    }
    with pytest.raises(PlanError, match="stages need each other"):
        preserve(graph, plan_file.from_recipe(recipe, graph, devices=2))


@pytest.mark.parametrize("name", named.NAMES[:6])
def test_everything_is_freed_but_weights_and_losses(graph, name):
    program = preserve(graph, named.build(name, graph, 2, micro_batches=2))
    live = {b for s in program.sections for a in s.actions for b in effects(a, graph, program.runs).writes}
    live -= {b for s in program.sections for a in s.actions if isinstance(a, Free) for b in a.buffers}
    assert live <= {
        *program.losses,
        *(b for b in live if b.kind == "value" and b.variant == "" and b.micro_batch == -1),
    }


def test_zero_3_never_gathers_all_weights_at_once(graph):
    program = preserve(graph, named.build("zero-3", graph, 2, micro_batches=1))
    weights = [[t for t, _, _ in run.inputs if graph.tensors[t].role == "parameter"] for run in program.runs]
    assert max(sum(graph.tensors[t].elements for t in of) for of in weights) < sum(
        graph.tensors[t].elements for t in graph.parameters
    )
    assert moves(program)["all-gather"] >= 2 * len(graph.parameters) - 2


def test_all_members_meet_in_the_same_order(graph):
    program = preserve(graph, named.build("hybrid", graph, 8, tensor=2, pipeline=2, micro_batches=4))
    lists = [project(program, rank) for rank in range(8)]
    for group in {i.group for of in lists for i in of if isinstance(i, Collective)}:
        calls = [
            [(i.kind, i.target) for i in lists[r] if isinstance(i, Collective) and i.group == group] for r in group
        ]
        assert all(each == calls[0] for each in calls)
    sent = Counter(
        (i.tag, r, p.peer) for r, of in enumerate(lists) for i in of if isinstance(i, Exchange) for p in i.sends
    )
    got = Counter(
        (i.tag, p.peer, r) for r, of in enumerate(lists) for i in of if isinstance(i, Exchange) for p in i.receives
    )
    assert sent == got
    assert sent


def test_gradients_are_reduced_once_after_the_last_micro_batch(graph):
    program = preserve(graph, named.build("dp", graph, 2, micro_batches=4))
    *blocks, tail = program.sections
    reduced = {a.source.tensor for s in blocks for a in s.actions if isinstance(a, Move)}
    assert not reduced & set(graph.parameters)
    assert {a.source.tensor for a in tail.actions if isinstance(a, Move)} == set(graph.parameters)


def test_sections_are_made_from_few_templates(graph):
    program = preserve(graph, named.build("1f1b", graph, 4, micro_batches=50))
    assert len(program.sections) == 4 * 50 * 2 + 1
    assert len(program.sections.templates) < 30
    section = program.sections[program.plan.order.index(Block(2, 31, "F"))]
    assert {a.micro_batch for a in section.actions if isinstance(a, Compute)} == {31}
    assert any(isinstance(a, Transfer) for a in section.actions)


def test_equal_input_gives_equal_bytes(graph):
    first, second = (named.build("hybrid", graph, 4, tensor=2, micro_batches=2) for _ in range(2))
    assert plan_file.text(first) == plan_file.text(second)
    assert repr(preserve(graph, first)) == repr(preserve(graph, second))


def test_an_update_reads_weight_and_gradient(graph):
    program = preserve(graph, named.build("zero-1", graph, 2))
    updates = [i for i in project(program, 0) if isinstance(i, Local) and i.kind == "update"]
    assert {u.targets[0].tensor for u in updates} == set(graph.parameters)
    assert all(u.sources[0] == u.targets[0] and u.sources[1].kind == "gradient" for u in updates)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("1f1d", {}, "did you mean '1f1b'"),
        ("hybrid", {"tensor": 3}, "the nearest product that does is 2"),
        ("dp", {"tensor": 2, "data": 1}, "data 2 would use all"),
        ("ep", {}, "the model has no experts"),
        ("3f1b", {}, "apply the same layers several times"),
        ("interlaced", {}, "start with a large table"),
    ],
)
def test_a_named_plan_that_cannot_be_says_why(graph, name, options, message):
    with pytest.raises(PlanError, match=message):
        named.build(name, graph, 4, **options)


def test_instructions_are_the_same_with_and_without_templates(graph):
    program = preserve(graph, named.build("hybrid", graph, 8, tensor=2, pipeline=2, micro_batches=3))
    plain = replace(program, sections=tuple(program.sections))
    assert all(project(program, rank) == project(plain, rank) for rank in range(8))
