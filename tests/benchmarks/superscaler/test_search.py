"""The search beside what a user would solve the same problem with, as ratios within one run."""

from __future__ import annotations

import time

import numpy as np
import pytest

from engines.superscaler import models
from engines.superscaler.cost.abstract import Abstract
from engines.superscaler.layout import Mesh
from engines.superscaler.precision import Precision
from engines.superscaler.search.constraints import Space
from engines.superscaler.search.elimination import reduce
from engines.superscaler.search.ilp import _Model, solve
from engines.superscaler.search.problem import Bench, Setting
from engines.superscaler.trace import trace
from harness.hardware import load_profile


@pytest.fixture(scope="module")
def problem():
    """Twelve layers of a GPT on a 2 x 4 mesh."""
    module, inputs = models.build("gpt", device="meta", layers=12, hidden=256, heads=8, sequence=64, vocabulary=1024)
    graph = trace(module, inputs, "gpt")
    bench = Bench(graph, Abstract(load_profile("v100x8-nvlink")), Space(), Precision())
    return bench.tables(Mesh(tuple(range(8)), (2, 4))).problem([op.name for op in graph.ops], Setting())


def test_elimination_beats_the_integer_program_on_the_same_tables(benchmark, problem):
    reduced = benchmark.pedantic(lambda: reduce(problem), rounds=3)
    began = time.process_time()
    reduce(problem)
    ours = time.process_time() - began
    few = set(list(problem.choices)[:40])
    part = type(problem)(
        {name: count for name, count in problem.choices.items() if name in few},
        [(names, table) for names, table in problem.tables if set(names) <= few],
    )
    began = time.process_time()
    picked, bound = solve(part)
    highs = time.process_time() - began
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    model = _Model(part, 1.0, None, {})
    rows = np.repeat(np.arange(len(model._entries)), [len(columns) for columns, _ in model._entries])
    matrix = csr_array(
        (
            np.concatenate([values for _, values in model._entries]),
            (rows, np.concatenate([columns for columns, _ in model._entries])),
        )
    )
    finite = np.isfinite(model.costs)
    peer = milp(
        np.where(finite, model.costs, 0.0) * 1e3,
        constraints=LinearConstraint(matrix, model._lower, model._upper),
        integrality=np.arange(len(model.costs)) < model.binaries,
        bounds=Bounds(0, finite.astype(float)),
    )
    assert part.cost(picked) == pytest.approx(peer.fun / 1e3, rel=1e-5)
    exact = reduce(part)
    assert exact.constant == pytest.approx(part.cost(picked), rel=1e-5)
    assert bound <= part.cost(picked) * (1 + 1e-6)
    benchmark.extra_info["integer program of 40 operators over elimination of all"] = highs / ours
    assert highs > ours
    assert not reduced.core.choices
