"""Emulated steps: never faster than what a device has to compute, never faster for more work, however lowered."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emulation.evaluate import simulate
from engines.superscaler import dependency, emulate, memory
from engines.superscaler.annotation import Annotation
from engines.superscaler.emulate.kernels import Kernels
from engines.superscaler.graph import Graph, Op, Tensor
from engines.superscaler.layout import Mesh
from engines.superscaler.order import one_f_one_b
from engines.superscaler.plan import Plan, Stage
from engines.superscaler.precision import Precision
from engines.superscaler.program import Compute
from harness.hardware import load_profile

PROFILE = load_profile("v100x8-nvlink")


def _graph(widths: list[int], batch: int) -> Graph:
    tensors = {"x": Tensor("x", (batch, widths[0]), "fp32", "input", False)}
    ops, source = [], "x"
    for number, (k, n) in enumerate(itertools.pairwise(widths)):
        weight, out = f"layers.{number}.weight", f"hidden{number}"
        tensors[weight] = Tensor(weight, (n, k), "fp32", "parameter", True)
        tensors[out] = Tensor(out, (batch, n), "fp32", "activation", True)
        sizes = {"b": batch, "k": k, "n": n}
        annotation = Annotation(
            ((("b",), ("k",)), (("n",), ("k",))), ((("b",), ("n",)),), sizes, reductions={"k": "sum"}
        )
        ops.append(Op(f"layers.{number}", "linear", (source, weight), (out,), {}, annotation))
        source = out
    tensors["loss"] = Tensor("loss", (), "fp32", "activation", True)
    total = Annotation(((("b",), ("n",)),), ((),), {"b": batch, "n": widths[-1]}, reductions={"b": "sum", "n": "sum"})
    ops.append(Op("loss", "sum", (source,), ("loss",), {"dim": [0, 1], "keepdim": False}, total))
    weights = tuple(name for name, tensor in tensors.items() if tensor.role == "parameter")
    return Graph("chain", tensors, tuple(ops), ("x",), "loss", weights)


@st.composite
def programs(draw):
    """Any splits of a chain of linear layers over two axes, on stages of equal meshes."""
    layers = draw(st.integers(2, 5))
    widths = draw(st.lists(st.sampled_from([8, 16, 64]), min_size=layers + 1, max_size=layers + 1))
    graph = _graph(widths, 8)
    count = draw(st.integers(1, min(2, layers)))
    shape = draw(st.sampled_from([(1, 1), (2, 1), (1, 2), (2, 2), (4, 1)]))
    size = shape[0] * shape[1]
    names = [op.name for op in graph.ops]
    stages = []
    for number in range(count):
        own = tuple(names[number * len(names) // count : (number + 1) * len(names) // count])
        splits = {}
        for name in own:
            choices = ["b", ""] if name == "loss" else ["b", "n", "k", ""]
            splits[name] = tuple(draw(st.sampled_from(choices)) for _ in shape)
        stages.append(Stage("", own, Mesh(tuple(range(number * size, (number + 1) * size)), shape), splits))
    micro_batches = draw(st.integers(1, 3))
    plan = Plan(graph.digest, tuple(stages), micro_batches, one_f_one_b(count, micro_batches))
    return dependency.preserve(graph, plan)


def _computing(program) -> float:
    """Seconds of the device with most to compute, each kernel by itself."""
    from emulation.graph import Workload

    kernels = Kernels(program, Precision())
    spent: dict[int, float] = {}
    known: dict[int, float] = {}
    for section in program.sections:
        for action in section.actions:
            if not isinstance(action, Compute):
                continue
            for part in kernels.of(action.run, action.what):
                if id(part) not in known:
                    work = Workload()
                    work.compute("host0/gpu0", part.flops, part.nbytes, dtype=part.dtype, family=part.family)
                    known[id(part)] = simulate(work, PROFILE).seconds
                for device in program.runs[action.run].mesh.devices:
                    spent[device] = spent.get(device, 0.0) + known[id(part)]
    return max(spent.values())


@settings(max_examples=25, deadline=None)
@given(programs())
def test_a_step_takes_at_least_what_a_device_computes_and_both_forms_agree(program):
    ranks = emulate.workload(program, PROFILE, form="ranks")
    folded = emulate.workload(program, PROFILE, form="folded")
    result = simulate(folded.work, PROFILE)
    # Where links are shared, the events round once for every change of rate.
    assert simulate(ranks.work, PROFILE).picoseconds == pytest.approx(result.picoseconds, abs=len(ranks.work.nodes))
    assert result.seconds >= _computing(program) * (1 - 1e-9)
    estimate = emulate.estimate(folded, result)
    assert all(spent <= result.seconds * (1 + 1e-9) for spent in estimate.busy.values())


@settings(max_examples=15, deadline=None)
@given(programs())
def test_smaller_numbers_take_no_longer_and_less_room(program):
    full, half = Precision(), Precision("fp16", state=0)
    assert _seconds(program, half) <= _seconds(program, full)
    some, more = memory.peak(program, half), memory.peak(program, Precision(state=0))
    assert all(some[device].total <= more[device].total for device in some)


def _seconds(program, precision) -> float:
    return emulate.seconds(program, PROFILE, precision=precision).seconds


@settings(max_examples=25, deadline=None)
@given(programs())
def test_what_is_sent_is_received(program):
    found = emulate.traffic(program)
    assert sum(one.sent.total() for one in found.values()) == sum(one.received.total() for one in found.values())
