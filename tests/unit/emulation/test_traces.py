import gzip
import json
import weakref

import pytest

from emulation.evaluate import simulate
from emulation.graph import Workload
from emulation.io.chrome_trace import Slice, document, write
from emulation.program import Mesh, Program

A, B, C = "host0/gpu0", "host0/gpu1", "host0/gpu2"


def _slices(document):
    return [event for event in document["traceEvents"] if event["ph"] == "X"]


def _nest(events):
    """Whether slices of each (pid, tid) are inside or outside one another, never across."""
    rows = {}
    for event in events:
        rows.setdefault((event["pid"], event["tid"]), []).append((event["ts"], event["ts"] + event["dur"]))
    return all(
        b <= c + 1e-9 or d <= a + 1e-9 or (a <= c and d <= b) or (c <= a and b <= d)
        for row in rows.values()
        for i, (a, b) in enumerate(row)
        for c, d in row[i + 1 :]
    )


def _busy_workload():
    work = Workload()
    for size in (3, 1, 2):
        work.transfer(A, B, size * 10**5, after=[work.host(A, size * 1e-6)], name=f"t{size}")
    work.collective("all-reduce", [A, B, C], 10**5)
    return work


def test_overlapping_slices_go_to_threads_of_their_own(small):
    result = simulate(_busy_workload(), small())
    events = _slices(document(result.slices))
    transfers = [event for event in events if event["name"].startswith("t")]
    assert len({event["tid"] for event in transfers}) > 1
    assert _nest(events)


def test_slices_that_nest_share_a_thread():
    outer, inner = Slice("p", "t", "outer", 0.0, 10e-6), Slice("p", "t", "inner", 2e-6, 3e-6)
    assert len({event["tid"] for event in _slices(document([inner, outer]))}) == 1


def test_trace_ends_with_the_step_in_microseconds(small):
    result = simulate(_busy_workload(), small())
    end = max(event["ts"] + event["dur"] for event in _slices(document(result.slices)))
    assert end == pytest.approx(result.picoseconds / 1e6, rel=1e-12)


def test_collective_is_drawn_on_every_rank(small):
    result = simulate(_busy_workload(), small())
    assert {one.process for one in result.slices if one.name == "all-reduce"} == {A, B, C}


def test_processes_and_threads_are_named(small):
    names = {
        (event["name"], event["args"]["name"])
        for event in document(simulate(_busy_workload(), small()).slices)["traceEvents"]
        if event["ph"] == "M" and "name" in event["args"]
    }
    assert {("process_name", A), ("thread_name", "main"), ("thread_name", "comm")} <= names


def test_file_is_capped_and_says_so():
    found = document([Slice("p", "t", str(n), n * 1e-6, 1e-6) for n in range(30)], limit=10)
    assert [event["name"] for event in _slices(found)] == [str(n) for n in range(10)]
    assert found["otherData"] == {"left_out": "20"}


@pytest.mark.parametrize("name", ["trace.json", "trace.json.gz"])
def test_same_slices_give_the_same_bytes(tmp_path, small, name):
    slices = simulate(_busy_workload(), small()).slices
    first, second = tmp_path / f"a-{name}", tmp_path / f"b-{name}"
    write(first, slices)
    write(second, slices)
    data = first.read_bytes()
    assert data == second.read_bytes()
    assert json.loads(gzip.decompress(data) if name.endswith("gz") else data)["displayTimeUnit"] == "ns"


def test_slices_are_taken_one_by_one_and_no_more_than_the_cap_is_held(tmp_path):
    made, gone, most = 0, [], 0

    def many():
        nonlocal made, most
        for n in range(5000):
            one = Slice("p", "t", str(n), (n * 7919 % 5000) * 1e-6, 1e-6)
            weakref.finalize(one, gone.append, n)
            made += 1
            most = max(most, made - len(gone))
            yield one

    path = tmp_path / "trace.json"
    write(path, many(), limit=100)
    assert most <= 102
    found = json.loads(path.read_text())
    assert [event["ts"] for event in _slices(found)] == [float(n) for n in range(100)]
    assert found["otherData"] == {"left_out": "4900"}


def test_cap_holds_for_arrows_and_counters_as_well(small):
    result = simulate(_busy_workload(), small())
    for limit in range(1, 30):
        events = document(result.timeline(), levels=result.levels(), limit=limit)["traceEvents"]
        assert len([event for event in events if event["ph"] != "M"]) <= limit
        # An arrow is there with both of its ends or not at all.
        ends = [[event["id"] for event in events if event["ph"] == end] for end in "sf"]
        assert sorted(ends[0]) == sorted(ends[1])


def test_arrow_leads_from_the_sender_to_a_slice_of_the_receiver(small):
    work = Workload()
    work.transfer(A, B, 10**6, name="activations")
    events = document(simulate(work, small()).timeline())["traceEvents"]
    process = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
    thread = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    ends = {event["ph"]: event for event in events if event["ph"] in "sf"}
    assert {ph: (process[e["pid"]], thread[e["pid"], e["tid"]], e["ts"]) for ph, e in ends.items()} == {
        "s": (A, f"to {B}", 0.0),
        "f": (B, f"from {A}", 100.0),
    }
    assert ends["s"]["id"] == ends["f"]["id"]
    assert ends["f"]["bp"] == "e"
    assert [(process[e["pid"]], e["ts"], e["dur"]) for e in _slices({"traceEvents": events})] == [
        (A, 0.0, 100.0),
        (B, 0.0, 100.0),
    ]


def test_counters_show_memory_held_and_what_moves_over_links(small):
    work = Workload()
    held = work.alloc(A, 500)
    sent = work.transfer(A, B, 10**6, after=[held, work.host(A, 5e-6)])
    work.free(held, after=[sent])
    events = document([], levels=simulate(work, small()).levels())["traceEvents"]
    found = [(event["name"], event["ts"], event["args"]) for event in events if event["ph"] == "C"]
    rate = {"bytes per second": 10**10}
    assert [one for one in found if one[0] == "memory"] == [
        ("memory", 0.0, {"bytes": 500}),
        ("memory", 105.0, {"bytes": 0}),
    ]
    assert [one for one in found if one[0].startswith(f"{A}>")] == [
        (f"{A}>host0/switch0", 5.0, rate),
        (f"{A}>host0/switch0", 105.0, {"bytes per second": 0}),
    ]


def test_class_of_ranks_is_drawn_once_with_their_number():
    slices = [Slice(process, "t", "x", 0.0, 1e-6) for process in (A, B, C)]
    found = document(slices, names={A: "gpu (x2)", B: "gpu (x2)"})
    names = {e["args"]["name"] for e in found["traceEvents"] if e["name"] == "process_name"}
    assert names == {"gpu (x2)", C}
    assert len(_slices(found)) == 2


def test_folded_program_names_how_many_ranks_one_stands_for(small):
    program = Program(Mesh.over(small(), {"dp": 4}))
    program.compute(program.mesh.block(), flops=1e9, dtype="fp16")
    result = simulate(program, small())
    found = document(result.timeline(), names=result.names())
    assert {e["args"]["name"] for e in found["traceEvents"] if e["name"] == "process_name"} == {f"{A} (x4)"}
    assert len(_slices(found)) == 1
