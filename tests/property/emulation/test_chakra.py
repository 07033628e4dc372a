"""A workload that went through Chakra files is the workload that went in."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emulation.evaluate import simulate
from emulation.graph import OPS, Workload
from emulation.io import chakra

pytest.importorskip("google.protobuf")

DEVICES = ["host0/gpu0", "host0/gpu1", "host0/gpu2", "host0/gpu3"]
SIZES = st.integers(0, 10**7)


@st.composite
def workloads(draw):
    """Programs of ranks: a node waits for nodes it shares a device with, which is all that separate files can say."""
    work = Workload()
    on = {device: [] for device in DEVICES}

    def earlier(*devices):
        known = sorted({node for device in devices for node in on[device]})
        return draw(st.lists(st.sampled_from(known), max_size=3)) if known else []

    for _ in range(draw(st.integers(1, 14))):
        kind = draw(st.sampled_from(["host", "compute", "copy", "transfer", "pair", "collective", "enter", "alloc"]))
        a, b = draw(st.sampled_from(DEVICES)), draw(st.sampled_from(DEVICES))
        group = draw(st.permutations(DEVICES))[: draw(st.integers(1, 4))]
        stream = draw(st.sampled_from(["", "main", "side"]))
        made = []
        match kind:
            case "host":
                made = [(work.host(a, draw(st.floats(0, 1e-3)), after=earlier(a), stream=stream or "main"), [a])]
            case "compute":
                flops, size = draw(st.floats(0, 1e9)), draw(SIZES)
                dtype = draw(st.sampled_from(["fp16", "fp32"]))
                kind = {"dtype": dtype, "family": "matmul", "shape": draw(st.sampled_from([(), (8, 16, 32)]))}
                made = [(work.compute(a, flops, size, **kind, after=earlier(a)), [a])]
            case "copy":
                made = [(work.copy(a, b, draw(SIZES), after=earlier(a, b), stream=stream), [a, b])]
            case "transfer":
                software = {"cap": draw(st.floats(1e6, 1e12)), "seconds": draw(st.floats(0, 1e-4))}
                made = [(work.transfer(a, b, draw(SIZES), after=earlier(a, b), stream=stream, **software), [a, b])]
            case "pair":
                size, tag = draw(SIZES), draw(st.sampled_from(["", "x", "7", "07"]))
                made = [(work.send(a, b, size, tag=tag, after=earlier(a)), [a])]
                made += [(work.recv(a, b, size, tag=tag, after=earlier(b)), [b])]
            case "collective":
                made = [(work.collective(draw(st.sampled_from(OPS)), group, draw(SIZES), after=earlier(*group)), group)]
            case "enter":
                op, size = draw(st.sampled_from(OPS)), draw(SIZES)
                made = [(work.enter(op, rank, group, size, after=earlier(rank)), [rank]) for rank in group]
            case "alloc":
                taken = work.alloc(a, draw(SIZES), after=earlier(a))
                made = [(taken, [a]), (work.free(taken, after=earlier(a)), [a])]
        for node, devices in made:
            for device in devices:
                on[device].append(node)
    return work


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(workloads())
def test_round_trip_simulates_to_the_same_picosecond(small, before):
    profile = small()
    with tempfile.TemporaryDirectory() as folder:
        chakra.write(Path(folder) / "w", before)
        after = chakra.read(Path(folder) / "w")
    assert simulate(after, profile).summary() == simulate(before, profile).summary()
    assert [(n.kind, n.family, n.shape) for n in after.nodes] == [(n.kind, n.family, n.shape) for n in before.nodes]
