import hashlib
import json
import os
import subprocess
import sys

import pytest

from emulation.band import combined, width
from emulation.evaluate import simulate
from emulation.evaluate.events import EVENT_BUDGET, TooManyEvents, check_budget
from emulation.evaluate.fluid import Activity, Fluids, Stalled
from emulation.graph import Workload
from emulation.topology import DirectedLink

A, B, C = "host0/gpu0", "host0/gpu1", "host0/gpu2"
MICRO = 10**6


def test_stream_is_a_serial_queue_and_streams_run_side_by_side(small):
    work = Workload()
    first = work.host(A, 2e-6)
    second = work.host(A, 3e-6)
    beside = work.host(A, 4e-6, stream="other")
    result = simulate(work, small())
    assert [result.start(node) for node in (first, second, beside)] == [0.0, 2e-6, 0.0]
    assert result.picoseconds == 5 * MICRO


def test_ten_waits_of_a_tenth_end_with_one_of_a_whole(small):
    work = Workload()
    tenths = [work.host(A, 0.1) for _ in range(10)]
    whole = work.host(B, 1.0)
    result = simulate(work, small())
    assert result.finish(tenths[-1]) == result.finish(whole) == 1.0


def test_two_transfers_share_a_link_and_the_second_speeds_up_when_the_first_is_done(small):
    work = Workload()
    short = work.transfer(A, B, 10**7)
    long = work.transfer(A, C, 3 * 10**7)
    result = simulate(work, small())
    # 5 GB/s each until the short one is done at 2 ms; then 20 MB at 10 GB/s.
    assert (result.finish(short), result.finish(long)) == (2e-3, 4e-3)


def test_a_late_transfer_slows_the_one_under_way(small):
    work = Workload()
    early = work.transfer(A, B, 2 * 10**7)
    late = work.transfer(A, C, 5 * 10**6, after=[work.host(B, 1e-3)])
    result = simulate(work, small())
    assert (result.finish(early), result.finish(late)) == (2.5e-3, 2e-3)


def test_opposite_directions_do_not_share(small):
    work = Workload()
    there, back = work.transfer(A, B, 10**7), work.transfer(B, A, 10**7)
    result = simulate(work, small())
    assert result.finish(there) == result.finish(back) == 1e-3


def test_links_report_bytes_and_the_time_they_were_busy(small):
    work = Workload()
    work.transfer(A, B, 10**7, after=[work.host(A, 1e-3)])
    work.transfer(A, C, 10**7)
    links = {use.name: use for use in simulate(work, small()).links}
    up = links["host0/gpu0>host0/switch0"]
    assert (up.bytes, up.busy) == (2e7, 2e-3)
    assert links["host0/switch0>host0/gpu2"].busy == 1e-3


def test_link_without_capacity_is_named_instead_of_hanging():
    links = [DirectedLink("fine", "nvlink", 1e9, 0, "measured"), DirectedLink("dead", "nvlink", 0.0, 0, "measured")]
    fluids = Fluids(links, lambda number: f"#{number} transfer")
    fluids.start(7, Activity(((0, 1.0), (1, 1.0)), float("inf"), 100.0), 0)
    with pytest.raises(Stalled, match="#7 transfer makes no progress: link dead has no capacity"):
        fluids.settle(0)


def test_change_elsewhere_leaves_a_finish_time_alone():
    links = [DirectedLink(name, "nvlink", 3.0, 0, "measured") for name in "ab"]
    fluids = Fluids(links)
    first = Activity(((0, 1.0),), float("inf"), 10.0)
    fluids.start(0, first, 0)
    fluids.settle(0)
    before = (first.finish, first.version)
    fluids.start(1, Activity(((1, 1.0),), float("inf"), 1.0), 333)
    fluids.settle(333)
    assert (first.finish, first.version) == before


def test_too_large_a_workload_is_refused_with_its_number():
    check_budget(EVENT_BUDGET)
    with pytest.raises(TooManyEvents, match=r"5,000,001 events, more than 5,000,000; join consecutive kernels"):
        check_budget(EVENT_BUDGET + 1)


def test_memory_peaks_and_the_verdict_keep_a_reserve(small):
    work = Workload()
    first = work.alloc(A, 600 * 10**6)
    busy = work.host(A, 1e-6, after=[first])
    freed = work.free(first, after=[busy])
    work.alloc(A, 500 * 10**6, after=[freed])
    work.alloc(B, 900 * 10**6)
    work.alloc(C, 900 * 10**6 + 1)
    memory = simulate(work, small()).peak_memory
    assert {device: (use.peak, use.fits) for device, use in memory.items()} == {
        A: (600 * 10**6, True),
        B: (900 * 10**6, True),
        C: (900 * 10**6 + 1, False),
    }


def test_memory_freed_at_an_instant_can_be_taken_at_it(small):
    work = Workload()
    first = work.alloc(A, 10)
    gate = work.host(A, 1e-6)
    work.alloc(A, 10, after=[gate])
    work.free(first, after=[gate])
    assert simulate(work, small()).peak_memory[A].peak == 10


def test_critical_path_is_a_chain_from_zero_to_the_end(small):
    work = Workload()
    work.host(B, 1e-6)
    kernel = work.compute(A, 3e6)
    moved = work.transfer(A, B, 10**4, after=[kernel])
    last = work.host(B, 4e-6, after=[moved])
    path = simulate(work, small()).critical_path
    assert path.nodes == (kernel, moved, last)
    assert path.shares == {"compute": 3 / 8, "host": 4 / 8, "p2p": 1 / 8}


def test_communication_is_split_into_exposed_and_overlapped(small):
    work = Workload()
    work.compute(A, 4e6)
    work.transfer(A, B, 10**5)
    found = simulate(work, small()).communication
    assert (found[A].exposed, found[A].overlapped) == (6e-6, 4e-6)
    assert (found[B].exposed, found[B].overlapped) == (10e-6, 0.0)


def test_grade_is_the_weakest_that_was_used_and_widens_the_band(small):
    bands = {}
    for grade in ("measured", "prior", "datasheet"):
        work = Workload()
        work.host(A, 1e-3, grade=grade)
        result = simulate(work, small())
        assert result.grade == grade
        low, high = result.band()
        assert low < result.seconds < high
        bands[grade] = high
    assert bands["measured"] < bands["prior"] < bands["datasheet"]


def test_band_adds_families_in_quadrature():
    half = combined({("compute", "prior", None): 0.5, ("p2p", "prior", None): 0.5})
    (compute, _), (p2p, _) = width("compute", "prior"), width("p2p", "prior")
    assert half[0] == pytest.approx(((compute / 2) ** 2 + (p2p / 2) ** 2) ** 0.5)


def test_empty_workload_takes_no_time(small):
    result = simulate(Workload(), small())
    assert (result.picoseconds, result.slices, result.grade, result.band()) == (0, (), "measured", (0.0, 0.0))


SCENE = """
import json, sys, yaml
from emulation.profile import Profile
from emulation.graph import Workload
from emulation.evaluate import simulate
from emulation.io.chrome_trace import document
profile = Profile.model_validate(yaml.safe_load(sys.stdin))
work = Workload()
group = [f"host{h}/gpu{g}" for h in (0, 1) for g in range(8)]
for layer in range(4):
    kernels = [work.compute(d, 1e12 * (1 + i % 3), 2**28, dtype="bf16") for i, d in enumerate(group)]
    work.collective("all-reduce", group, 2**26, after=kernels)
    for i, d in enumerate(group):
        work.transfer(d, group[(i * 5 + layer + 1) % 16], 2**20 * (1 + i), after=[kernels[i]])
result = simulate(work, profile)
print(json.dumps([result.summary(), document(result.slices), profile.digest]))
"""


def test_bytes_are_equal_under_every_hash_seed(shipped):
    text = json.dumps(shipped("a100x8-hdr").model_dump(mode="json", by_alias=True))
    seen = set()
    for seed in ("0", "1", "4242"):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-c", SCENE], input=text.encode(), capture_output=True, check=True, env=environment
        )
        seen.add(hashlib.sha256(done.stdout).hexdigest())
    assert len(seen) == 1


def test_nodes_of_a_folded_program_know_their_items(shipped):
    from emulation.program import Mesh, Part, Program

    profile = shipped("a100x8-hdr")
    mesh = Mesh.over(profile, {"tp": 2})
    program = Program(mesh)
    kernel, total = Part.compute(1e9, dtype="bf16"), Part.collective("tp", "all-reduce", 2**20)
    first = program.chain(mesh.block(), [kernel, total, kernel], name="first")
    program.chain(mesh.block(), [kernel], after=[first], name="second")
    result = simulate(program, profile)
    items = [result.item(one.args["node"]) for one in result.timeline()]
    assert set(items) == {0, 1}
    assert items == sorted(items)
    flat = simulate(program.expand(), profile)
    assert [flat.item(node) for node in (0, 3)] == [0, 3]
