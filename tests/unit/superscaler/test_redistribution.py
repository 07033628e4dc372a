"""The paths that a person would choose, and what is refused."""

import pytest

from engines.superscaler.layout import Layout, Mesh
from engines.superscaler.redistribution import Bytes, Crossing, Step, between, lower_bound, pieces, received, within

MESH = Mesh((0, 1, 2, 3), (2, 2))
SHAPE = (1024, 1024)


def layout(*dims, partial=(), mesh=MESH, reduction="sum") -> Layout:
    return Layout(mesh, dims, partial, reduction)


@pytest.mark.parametrize(
    ("source", "target", "kinds"),
    [
        (layout((0,), (1,)), layout((0,), (1,)), []),
        (layout((0,), (1,)), layout((0,), ()), ["all-gather"]),
        (layout((0, 1), ()), layout((), ()), ["all-gather"]),
        (layout((), ()), layout((0, 1), ()), ["slice"]),
        (layout((0, 1), ()), layout((0,), (1,)), ["all-to-all"]),
        (layout((0,), (), partial=(1,)), layout((0,), (1,)), ["reduce-scatter"]),
        (layout((), (), partial=(0, 1)), layout((), ()), ["all-reduce"]),
        (layout((0,), (), partial=(1,), reduction="max"), layout((0,), ()), ["all-reduce"]),
        (layout((), ()), layout((), (), partial=(0,)), ["mask"]),
        (layout((0, 1), ()), layout((1, 0), ()), ["exchange"]),
        (layout((0,), (1,)), layout((1,), (0,)), ["exchange"]),
    ],
)
def test_the_path_is_the_collective_that_fits(source, target, kinds) -> None:
    assert [step.kind for step in within(source, target, SHAPE, "fp32")] == kinds


def test_copies_share_the_work_of_a_large_sum_and_leave_a_small_one_alone() -> None:
    mesh = Mesh(tuple(range(8)), (2, 4))
    source, target = layout((), (), partial=(1,), mesh=mesh), layout((), (), mesh=mesh)
    large = within(source, target, SHAPE, "fp32")
    assert [step.kind for step in large] == ["slice", "reduce-scatter", "all-gather"]
    assert [step.kind for step in within(source, target, (8, 8), "fp32")] == ["all-reduce"]
    assert sum(sum(received(step, SHAPE).values()) for step in large) == lower_bound(source, target, SHAPE)


def test_prices_decide() -> None:
    def no_exchange(step, shape, dtype) -> float:
        return 1e9 if step.kind == "exchange" else 1.0

    kinds = [step.kind for step in within(layout((0, 1), ()), layout((1, 0), ()), SHAPE, "fp32", no_exchange)]
    assert kinds
    assert "exchange" not in kinds


def test_boxes_of_the_same_devices_are_compared_by_what_devices_hold() -> None:
    flat, square = Mesh((0, 1, 2, 3), (4,)), MESH
    assert within(layout((0,), (), mesh=flat), layout((0, 1), (), mesh=square), SHAPE, "fp32") == ()
    (step,) = within(layout((0,), (), mesh=flat), layout((0,), (), mesh=square), SHAPE, "fp32")
    assert step == Step("all-gather", (1,), layout((0, 1), ()), layout((0,), ()))
    (step,) = within(layout((0,), (), mesh=flat), layout((), (), mesh=square), SHAPE, "fp32")
    assert (step.axes, step.mesh) == ((0,), flat)
    assert flat.refined(Mesh((0, 1, 3, 2), (4,))) is None
    six = Mesh(tuple(range(6)), (2, 3))
    assert six.refined(Mesh(tuple(range(6)), (3, 2))) is None


def test_a_group_is_in_the_order_of_its_parts() -> None:
    assert MESH.groups((0, 1)) == ((0, 1, 2, 3),)
    assert MESH.groups((1, 0)) == ((0, 2, 1, 3),)
    assert MESH.groups((0,)) == ((0, 2), (1, 3))


def test_a_transfer_sends_what_is_needed_from_who_is_least_busy() -> None:
    there = Mesh((4, 5), (2,))
    steps = between(layout((), ()), layout((0,), (), mesh=there), SHAPE, "fp32")
    assert [step.kind for step in steps] == ["transfer"]
    assert [(p.source, p.target, p.box[0]) for p in pieces(steps[0].before, steps[0].after, SHAPE)] == [
        (0, 4, (0, 512)),
        (1, 5, (512, 1024)),
    ]


def test_copies_are_sent_once_and_gathered_there_when_sending_is_dear() -> None:
    here, there = Mesh((0,), (1,)), Mesh((4, 5, 6, 7), (4,))
    steps = between(layout((), (), mesh=here), layout((), (), mesh=there), SHAPE, "fp32")
    assert [step.kind for step in steps] == ["transfer", "all-gather"]
    steps = between(layout((), (), mesh=here), layout((), (), mesh=there), (4, 4), "fp32")
    assert [step.kind for step in steps] == ["transfer"]


def test_addends_are_summed_before_they_cross_a_slow_link() -> None:
    def slow_between(step, shape, dtype) -> float:
        return (10 if step.kind == "transfer" else 1) * Bytes()(step, shape, dtype)

    there = Mesh((4, 5, 6, 7), (4,))
    source, target = layout((), (), partial=(0, 1)), layout((0,), (), mesh=there)
    steps = between(source, target, SHAPE, "fp32", slow_between)
    assert [step.kind for step in steps] == ["reduce-scatter", "transfer"]
    assert [step.kind for step in between(source, target, SHAPE, "fp32")] == ["transfer"]


def test_ranks_on_both_sides_keep_what_they_have() -> None:
    there = Mesh((2, 3, 4, 5), (4,))
    (step,) = between(layout((0, 1), ()), layout((0,), (), mesh=there), SHAPE, "fp32")
    assert step == Crossing(layout((0, 1), ()), layout((0,), (), mesh=there))
    own = [p for p in pieces(step.before, step.after, SHAPE) if p.source == p.target]
    assert own == []
    swapped = Mesh((3, 1, 0, 2), (4,))
    (step,) = between(layout((0, 1), ()), layout((0,), (), mesh=swapped), SHAPE, "fp32")
    assert [p.target for p in pieces(step.before, step.after, SHAPE) if p.source == p.target] == [1]


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be split into 4"):
        within(layout((0, 1), ()), layout((), ()), (6, 4), "fp32")
    with pytest.raises(ValueError, match="no refinement in common"):
        within(layout((), ()), layout((), (), mesh=Mesh((0, 1), (2,))), SHAPE, "fp32")
    with pytest.raises(ValueError, match="the zeros of the others would count"):
        within(layout((), ()), layout((), (), partial=(0,), reduction="max"), SHAPE, "fp32")
