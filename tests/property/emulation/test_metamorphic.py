"""What must hold between two evaluations, whatever the workload."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emulation.evaluate import simulate
from emulation.graph import Workload
from emulation.io.chrome_trace import document as trace

DEVICES = [f"host{h}/gpu{g}" for h in (0, 1) for g in range(4)]
quickly = settings(deadline=None, max_examples=30)

nodes = st.lists(
    st.tuples(
        st.sampled_from(["compute", "transfer", "collective", "host"]),
        st.integers(0, 7),
        st.integers(0, 7),
        st.integers(1, 1000),
        st.sets(st.integers(1, 4), max_size=2),
    ),
    min_size=1,
    max_size=14,
)


def _build(plan, names=DEVICES, fixed=True):
    work = Workload()
    for kind, a, b, size, back in plan:
        after = sorted({len(work.nodes) - step for step in back if len(work.nodes) >= step})
        if kind == "compute":
            work.compute(names[a], size * 1e7, after=after)
        elif kind == "transfer":
            work.transfer(names[a], names[(a + 1 + b % 7) % 8], size * 10**5, after=after)
        elif kind == "collective":
            group = [names[(a + step) % 8] for step in range(1 + b)]
            work.collective("all-reduce", group, size * 10**5, after=after)
        elif fixed:
            work.host(names[a], size * 1e-6, after=after)
    return work


def _chain(plan):
    """One node after another: nothing shares, so time is a sum."""
    return [(kind, a, b, size, {1}) for kind, a, b, size, _ in plan]


@given(nodes)
@quickly
def test_more_bandwidth_never_slows_a_chain(small, plan):
    work = _build(_chain(plan))
    assert simulate(work, small(hosts=2, rate="20 GB/s")).seconds <= simulate(work, small(hosts=2)).seconds


@given(st.integers(1, 20), st.integers(1, 1000))
@quickly
def test_more_bandwidth_never_slows_transfers_that_share(small, count, size):
    work = Workload()
    for n in range(count):
        work.transfer(DEVICES[n % 8], DEVICES[(n * 3 + 1 + (n % 8 == (n * 3 + 1) % 8)) % 8], size * 10**5 * (1 + n % 3))
    assert simulate(work, small(hosts=2, rate="20 GB/s")).seconds <= simulate(work, small(hosts=2)).seconds


@given(nodes)
@quickly
def test_halving_every_rate_doubles_the_time_without_latencies(small, document, plan):
    plan = [one for one in plan if one[0] != "host"]
    work = _build(plan)
    free = document()["collectives"][0] | {"base": "0 s", "step": dict.fromkeys(["nvlink", "pcie", "network"], "0 s")}
    full = small(hosts=2, rate="8 GB/s", collectives=[free])
    half = small(hosts=2, rate="4 GB/s", scale=0.5, collectives=[free])
    # Each end is rounded to a picosecond, and rates that share pass the rounding on.
    assert simulate(work, half).picoseconds == pytest.approx(2 * simulate(work, full).picoseconds, abs=8 * len(plan))


@given(nodes)
@quickly
def test_step_time_is_the_critical_path_and_no_stream_is_longer(small, plan):
    work = _build(plan)
    result = simulate(work, small(hosts=2))
    chain = result.critical_path.nodes
    assert result.start(chain[0]) == 0.0
    assert all(result.finish(a) == result.start(b) for a, b in pairwise(chain))
    assert result.finish(chain[-1]) == result.seconds
    busy = {}
    for node in work.nodes:
        for device in node.devices if node.stream else ():
            key = (device, node.stream)
            busy[key] = busy.get(key, 0.0) + result.finish(node.id) - result.start(node.id)
    assert max(busy.values(), default=0.0) <= result.seconds * (1 + 1e-12)


@given(nodes, st.permutations(range(4)), st.booleans())
@quickly
def test_renumbering_ranks_of_equal_hardware_changes_nothing(small, plan, order, swapped):
    hosts = (1, 0) if swapped else (0, 1)
    renamed = [f"host{h}/gpu{g}" for h in hosts for g in order]
    profile = small(hosts=2)
    first, second = simulate(_build(plan), profile), simulate(_build(plan, renamed), profile)
    # Rings follow the topology's order, so which links a partial group uses may differ; whole groups do not.
    if all(kind != "collective" for kind, *_ in plan):
        assert first.picoseconds == second.picoseconds
    whole = [
        (kind, 0, 7, size, back) if kind == "collective" else (kind, a, b, size, back)
        for kind, a, b, size, back in plan
    ]
    chain = _chain([one for one in whole if one[0] == "collective"])
    assert simulate(_build(chain), profile).picoseconds == simulate(_build(chain, renamed), profile).picoseconds


@given(st.integers(2, 8), st.integers(0, 10**9), st.sampled_from(["all-reduce", "all-gather", "broadcast"]))
@quickly
def test_link_bytes_of_a_ring_are_the_closed_form(small, ranks, size, op):
    work = Workload()
    work.collective(op, [f"host0/gpu{g}" for g in range(ranks)], size)
    factor = {"all-reduce": 2 * (ranks - 1) / ranks, "all-gather": (ranks - 1) / ranks, "broadcast": 1.0}[op]
    links = simulate(work, small(gpus=8)).links
    assert len(links) == (2 * ranks if size else 0)
    assert [use.bytes for use in links] == pytest.approx([factor * size] * len(links))


@given(nodes)
@quickly
def test_same_workload_gives_the_same_answer_and_a_trace_that_ends_with_it(small, plan):
    profile = small(hosts=2)
    first, second = (simulate(_build(plan), profile, seed=seed) for seed in (0, 1))
    assert first.summary() == second.summary()
    ends = [e["ts"] + e["dur"] for e in trace(first.slices)["traceEvents"] if e["ph"] == "X"]
    assert max(ends, default=0.0) == pytest.approx(first.picoseconds / 1e6, rel=1e-12)


@given(nodes)
@quickly
def test_no_link_carries_more_than_its_capacity_allows(small, plan):
    result = simulate(_build(plan), small(hosts=2))
    assert all(use.bytes <= use.busy * use.capacity * (1 + 1e-6) + 1 for use in result.links)
