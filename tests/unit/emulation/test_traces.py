import gzip
import json

import pytest

from emulation.evaluate import simulate
from emulation.graph import Workload
from emulation.io.chrome_trace import Slice, document, write

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
