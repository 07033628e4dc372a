"""Found by verifying random plans: an exchange adds what meets, so parts of a maximum must not meet in one."""

from __future__ import annotations

import itertools

import pytest

from engines.superscaler.layout import Layout, Mesh
from engines.superscaler.redistribution import Crossing, between, within

SHAPE = (8, 8)
MESH = Mesh((0, 1, 2, 3), (2, 2))
DIMS = [((), ()), ((0,), ()), ((1,), ()), ((), (0,)), ((), (1,)), ((0,), (1,)), ((1,), (0,))]
TARGETS = [Layout(MESH, dims) for dims in DIMS]


@pytest.mark.parametrize("partial", [(0,), (1,), (0, 1)])
def test_parts_of_a_maximum_are_put_together_by_a_collective_alone(partial):
    free = [axis for axis in (0, 1) if axis not in partial]
    sources = [Layout(MESH, ((), ()), partial, "max")]
    sources += [Layout(MESH, (tuple(free), ()), partial, "max")] if free else []
    for source, target in itertools.product(sources, TARGETS):
        for step in within(source, target, SHAPE, "fp32"):
            assert step.kind != "exchange" or step.before.partial == step.after.partial


def test_parts_of_a_maximum_do_not_cross_to_another_mesh():
    source = Layout(MESH, ((), ()), (0,), "max")
    steps = between(source, Layout(Mesh((2, 3, 4), (3,)), ((), ())), SHAPE, "fp32")
    crossing = next(step for step in steps if isinstance(step, Crossing))
    assert not crossing.before.partial
