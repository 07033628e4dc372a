"""Sweep and events, folded and expanded: one graph, one answer, to the picosecond."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emulation.evaluate import simulate
from emulation.evaluate.events import Run
from emulation.evaluate.folding import Folded
from emulation.evaluate.groups import Pricing
from emulation.evaluate.ranks import RankSweep
from emulation.evaluate.room import Contended
from emulation.evaluate.sweep import Sweep
from emulation.evaluate.tasks import Tasks
from emulation.faults import SlowLink, SlowRank
from emulation.graph import Workload
from emulation.profile import Profile
from emulation.program import Mesh, Part, Program
from emulation.topology import Topology

thoroughly = settings(deadline=None, max_examples=500)
DEVICES = [f"host{h}/gpu{g}" for h in (0, 1) for g in range(4)]

nodes = st.lists(
    st.tuples(
        st.sampled_from(["compute", "compute", "host", "transfer", "collective"]),
        st.integers(0, 7),
        st.integers(0, 7),
        st.integers(0, 1000),
        st.sets(st.integers(1, 4), max_size=2),
        st.sampled_from(["main", "comm", ""]),
    ),
    min_size=1,
    max_size=14,
)


def _workload(plan):
    work = Workload()
    for kind, a, b, size, back, stream in plan:
        after = sorted({len(work.nodes) - step for step in back if len(work.nodes) >= step})
        if kind == "compute":
            work.compute(DEVICES[a], size * 1e7, after=after, stream=stream or "main")
        elif kind == "transfer":
            work.transfer(DEVICES[a], DEVICES[(a + 1 + b % 7) % 8], size * 10**5, after=after, stream=stream)
        elif kind == "collective":
            group = [DEVICES[(a + step) % 8] for step in range(1 + b)]
            work.collective("all-reduce", group, size * 10**5, after=after, stream=stream or "comm")
        else:
            work.host(DEVICES[a], size * 1e-6, after=after, stream=stream or "main")
    return work


def _comparable(result):
    return {key: value for key, value in result.summary().items() if key != "events"}


@given(nodes)
@thoroughly
def test_sweep_and_events_agree_on_any_workload_in_which_no_link_is_shared(small, plan):
    work, profile = _workload(plan), small(hosts=2)
    by_events = simulate(work, profile, evaluator="events")
    try:
        swept = simulate(work, profile, evaluator="sweep")
    except Contended:
        swept = simulate(work, profile)
        assert swept.events == by_events.events
    assert _comparable(swept) == _comparable(by_events)
    assert [(s.start, s.duration) for s in swept.slices] == [(s.start, s.duration) for s in by_events.slices]


def _document(document, *, rails, mixed):
    """Six hosts of four GPUs: an adapter for each GPU or for each host, of one model or of two."""
    found = document(hosts=6)
    (host,) = found["hosts"]
    if rails:
        host["nics"][0]["count"] = 4
        (link,) = [link for link in host["links"] if link["name"] == "pcie-nic"]
        link |= {"ends": ["gpu", "nic"], "pairing": "index"}
    if mixed:
        slow = found["models"]["gpu"]["compute"]["fp32"]["peak"] | {"value": "0.7 TFLOP/s"}
        found["models"]["old"] = found["models"]["gpu"] | {"compute": {"fp32": {"peak": slow}}}
        other = host | {"name": "older", "count": 2, "devices": [host["devices"][0] | {"model": "old"}]}
        found["hosts"] = [host | {"count": 4}, other]
    return Profile.model_validate(found)


items = st.lists(
    st.tuples(
        st.integers(0, 5),
        st.lists(st.tuples(st.sampled_from(["compute", "host", "tp", "dp", "both"]), st.integers(0, 40)), max_size=4),
        st.sampled_from(["main", "comm"]),
        st.sets(st.integers(1, 4), max_size=2),
        st.integers(0, 40),
    ),
    min_size=1,
    max_size=9,
)


def _program(plan, shape, profile):
    mesh = Mesh.over(profile, dict(zip(("pp", "dp", "tp"), shape, strict=True)))
    program = Program(mesh)
    stages = shape[0]
    for place, parts, stream, back, size in plan:
        after = sorted({len(program.items) - step for step in back if len(program.items) >= step})
        block = mesh.block(pp=place % stages)
        if not parts and stages > 1:
            program.transfer(block, mesh.block(pp=(place + 1) % stages), size * 10**5, after=after)
        elif place == 5 and parts:
            program.alloc(mesh.block(), size, after=after)
        elif parts:
            axes = {"tp": ("tp",), "dp": ("dp",), "both": ("dp", "tp")}
            chain = [
                Part.compute(amount * 1e8)
                if kind == "compute"
                else Part.host(amount * 1e-5)
                if kind == "host"
                else Part.collective(axes[kind], "all-reduce", amount * 10**5)
                for kind, amount in parts
            ]
            program.chain(block, chain, stream=stream, after=after)
    return program


@given(
    items,
    st.sampled_from([(1, 2, 4), (2, 2, 4), (3, 1, 4), (3, 2, 2), (2, 3, 4), (3, 4, 2), (1, 8, 3), (4, 3, 1)]),
    st.booleans(),
    st.booleans(),
)
@thoroughly
def test_a_program_takes_as_long_folded_swept_and_expanded(document, plan, shape, rails, mixed):
    profile = _document(document, rails=rails, mixed=mixed)
    program, topology = _program(plan, shape, profile), Topology(profile)
    expanded = Run(Tasks(program.expand(), topology))
    expanded.go()
    length = max(expanded.end, default=0)
    for fuse in (True, False):
        folded = Run(Folded(program, topology, fuse=fuse).tasks)
        folded.go()
        # Sums of shares over many links may differ in their last digit from those over one class of links.
        assert max(folded.end, default=0) == pytest.approx(length, abs=len(plan))
    swept, ranks = Sweep(Tasks(program.expand(), topology)), RankSweep(Pricing(program, topology))
    try:
        swept.go()
    except Contended:
        with pytest.raises(Contended):
            ranks.go()
        return
    ranks.go()
    assert swept.end == expanded.end
    assert swept.start == expanded.start
    assert ranks.picoseconds == length
    assert max(folded.end, default=0) == length


faults = st.lists(
    st.one_of(
        st.builds(SlowRank, kind=st.just("slow-rank"), rank=st.integers(0, 23), factor=st.sampled_from([1, 1.5, 3])),
        st.builds(
            SlowLink,
            kind=st.just("slow-link"),
            link=st.sampled_from(["host0/gpu1>host0/switch0", "host1/*", "host2/gpu*>*"]),
            factor=st.sampled_from([0.25, 1]),
        ),
    ),
    min_size=1,
    max_size=2,
)


@given(items, st.sampled_from([(2, 2, 4), (3, 2, 2), (2, 3, 4)]), st.booleans(), faults)
@settings(deadline=None, max_examples=100)
def test_what_is_wrong_throughout_splits_classes_and_changes_no_answer(document, plan, shape, rails, wrong):
    profile = _document(document, rails=rails, mixed=False)
    program = _program(plan, shape, profile)
    folded = simulate(program, profile, faults=wrong)
    expanded = simulate(program.expand(), profile, faults=wrong)
    assert folded.picoseconds == pytest.approx(expanded.picoseconds, abs=len(plan))
