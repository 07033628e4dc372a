"""What must hold whatever goes wrong."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emulation.evaluate import simulate
from emulation.faults import FAULTS
from emulation.graph import Workload

GPUS = [f"host0/gpu{n}" for n in range(4)]
quickly = settings(deadline=None, max_examples=60)

nodes = st.lists(
    st.tuples(st.booleans(), st.integers(0, 3), st.integers(1, 1000), st.sets(st.integers(1, 5), max_size=3)),
    min_size=1,
    max_size=16,
)
windows = st.one_of(
    st.just({}),
    st.tuples(st.floats(0, 5e-3), st.floats(0, 5e-3)).map(lambda w: {"from_": min(w), "to": max(w)}),
)


def _static(plan):
    """Kernels and collectives of all ranks: nobody shares a link, so what is done never depends on when."""
    work = Workload()
    for together, rank, size, back in plan:
        after = sorted({len(work.nodes) - step for step in back if len(work.nodes) >= step})
        if together:
            work.collective("all-reduce", GPUS, size * 10**4, after=after)
        else:
            work.compute(GPUS[rank], size * 1e6, after=after)
    return work


def _fault(kind, **fields):
    from emulation.faults import SlowLink, SlowRank

    model = {"slow-rank": SlowRank, "slow-link": SlowLink}[kind]
    window = {"from": fields.pop("from_", 0.0), "to": fields.pop("to", None)}
    return model.model_validate(
        {"kind": kind, **fields, **{k: None if v is None else f"{v!r} s" for k, v in window.items()}}
    )


@given(nodes, st.integers(0, 3), st.floats(1, 10), windows)
@quickly
def test_a_slow_rank_never_shortens_a_static_graph(small, plan, rank, factor, window):
    work, slow = _static(plan), _fault("slow-rank", rank=rank, factor=factor, **window)
    clean = simulate(work, small()).picoseconds
    found = simulate(work, small(), faults=[slow]).picoseconds
    # Where the pace changes, what is left is computed anew and rounded anew.
    assert found >= clean - 2 * len(plan)
    assert found <= clean * factor + 2 * len(plan)


@given(nodes, st.sampled_from(GPUS), st.floats(0.05, 1), windows)
@quickly
def test_a_slow_link_never_shortens_a_static_graph(small, plan, port, factor, window):
    work, slow = _static(plan), _fault("slow-link", link=port, factor=factor, **window)
    clean = simulate(work, small()).picoseconds
    found = simulate(work, small(), faults=[slow]).picoseconds
    assert found >= clean - 2 * len(plan)
    assert found <= clean / factor + 2 * len(plan)


@given(nodes, st.integers(0, 3), st.floats(1, 10))
@quickly
def test_a_fault_for_the_whole_run_is_the_same_said_as_a_window(small, plan, rank, factor):
    work = _static(plan)
    throughout = _fault("slow-rank", rank=rank, factor=factor)
    window = _fault("slow-rank", rank=rank, factor=factor, to=1e6)
    found, driven = (simulate(work, small(), faults=[fault]).picoseconds for fault in (throughout, window))
    assert found == pytest.approx(driven, abs=len(plan))


@given(nodes, st.floats(0, 1), st.integers(0, 2**63 - 1))
@quickly
def test_same_seed_gives_the_same_bytes(small, plan, sigma, seed):
    faults = FAULTS.validate_python(
        [
            {"kind": "jitter", "sigma": sigma},
            {"kind": "extra-latency", "link": "nvlink", "latency": "5 us", "jitter": "3 us"},
            {"kind": "link-down", "link": GPUS[0], "at": "1 ms", "until": "2 ms", "detection": "1 s"},
        ]
    )
    work = _static(plan)
    first, second = (simulate(work, small(), faults=faults, seed=seed).summary() for _ in range(2))
    assert first == second
