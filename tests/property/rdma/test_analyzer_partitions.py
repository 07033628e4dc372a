"""A divided graph computes the same bits as the whole, whatever the graph, the division, and the order of events."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402 - after the check that torch is there
from hypothesis import strategies as st  # noqa: E402
from torch.fx.experimental.proxy_tensor import make_fx  # noqa: E402

from engines.rdma.analyzer.capture import Input, Program, Role, UnsupportedGraph  # noqa: E402
from engines.rdma.analyzer.edges import Protocol  # noqa: E402
from engines.rdma.analyzer.graph_executor import GraphExecutor, take_turns  # noqa: E402
from engines.rdma.analyzer.plan import analyze  # noqa: E402
from engines.rdma.analyzer.ports import Memory  # noqa: E402
from engines.rdma.copies import CopyLedger  # noqa: E402

SIDE = 4
MACHINES = ("a", "b", "c")

PURE = {
    "sin": lambda x, _: x.sin(),
    "transpose": lambda x, _: x.t(),
    "add": lambda x, y: x + y,
    "mm": lambda x, y: x.mm(y),
    "row": lambda x, y: x[1:2].expand(SIDE, SIDE) * y,
    "rows": lambda x, _: torch.cat([x[2:], x[:2]]),
    "halves": lambda x, y: torch.cat([x.chunk(2)[1], y.chunk(2)[0]]),
    "extremes": lambda x, _: torch.add(*torch.aminmax(x, dim=1, keepdim=True)).expand(SIDE, SIDE),
    "sum": lambda x, _: x.sum(0, keepdim=True).expand(SIDE, SIDE),
    "norm": lambda x, _: torch.nn.functional.layer_norm(x, (SIDE,)),
    "where": lambda x, y: torch.where(x > y, x, y),
}
CHANGING = {
    "relu_": lambda x, _: (x * 2).relu_(),
    "add_": lambda x, y: x.sin().add_(y),
    "change": lambda x, _: x.mul_(0.5),
}

steps = st.lists(
    st.tuples(st.sampled_from(sorted(PURE | CHANGING)), st.integers(0, 99), st.integers(0, 99)), min_size=1, max_size=9
)


def program_of(recipe):
    def run(first, second):
        values = [first.tanh(), second.tanh()]
        for name, one, other in recipe:
            values.append((PURE | CHANGING)[name](values[one % len(values)], values[other % len(values)]))
        return values[2:]

    module = make_fx(run, tracing_mode="fake")(torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE))
    inputs = [node.name for node in module.graph.nodes if node.op == "placeholder"]
    return Program(
        module,
        tuple(Input(name, Role.INPUT, name) for name in inputs),
        tuple(f"output:{index}" for index in range(len(recipe))),
        {},
        grad_mode=False,
    )


def divide(program, placement):
    """A plan, or None where something that is changed in place would have to be sent."""
    try:
        return analyze(program, placement)
    except UnsupportedGraph as error:
        if "changed in place" not in str(error):
            raise
        return None


@settings(max_examples=40, deadline=None)
@given(recipe=steps, places=st.lists(st.sampled_from(MACHINES), min_size=60, max_size=60), seed=st.integers(0, 1 << 16))
def test_a_divided_graph_equals_the_whole(recipe, places, seed):
    program = program_of(recipe)
    where = dict(zip(program.nodes, places, strict=False))
    if (plan := divide(program, lambda node: where.get(node, "a"))) is None:
        assert any(name in CHANGING for name, _, _ in recipe)
        return
    assert all(edge.protocol is Protocol.STATIC for edge in plan.edges)
    memory = Memory(plan, delay=lambda edge, step: hash((seed, edge.index, step)) % 5)
    ledgers = {machine: CopyLedger() for machine in plan.machines}
    executors = {
        machine: GraphExecutor(plan, machine, memory.port(machine), ledgers[machine]) for machine in plan.machines
    }
    generator = torch.Generator().manual_seed(seed)
    promised = None
    for _ in range(4):
        inputs = {each.name: torch.randn(SIDE, SIDE, generator=generator) for each in program.inputs}
        with torch.no_grad():
            expected = dict(zip(program.outputs, program.module(*inputs.values()), strict=True))
        for ledger in ledgers.values():
            ledger.clear()
        found = take_turns(
            {name: each.step({key: inputs[key] for key in each.inputs}) for name, each in executors.items()}
        )
        got = {name: value for results in found.values() for name, value in results.items()}
        assert got.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(got[name], value), name
        if promised is not None:
            assert sum(ledger.nbytes for ledger in ledgers.values()) == promised
        # What is said to be copied at every step is what will be counted at the next.
        reports = [each.tracer.report() for each in executors.values()]
        promised = sum(each.nbytes for report in reports for each in report.promotions if each.reason)
        del found, got
