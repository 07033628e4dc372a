import os
from pathlib import Path

import pytest

from emulation.io import FormatError
from emulation.io.nccl_tests_log import bus_factor, read, recognises, tables

DATA = Path(os.environ.get("HARNESS_DATA", Path(__file__).resolve().parents[4] / "shared" / "data"))

HEAD = """\
# Collective test starting: {program}_perf
# nThread 1 nGpus {ranks} minBytes 1024 maxBytes 1048576 step: 1024(factor) warmup iters: 5 iters: 20 agg iters: 1
#
# Using devices
{devices}
#
#                                                              out-of-place                       in-place
#       size         count      type   redop    root     time   algbw   busbw #wrong     time   algbw   busbw #wrong
#        (B)    (elements)                               (us)  (GB/s)  (GB/s)            (us)  (GB/s)  (GB/s)
"""
TAIL = "# Out of bounds values : 0 OK\n# Avg bus bandwidth    : 10.1\n#\n"


def _cells(size, seconds, factor):
    algbw = size / seconds / 1e9
    return f"{seconds * 1e6:9.2f} {algbw:7.2f} {algbw * factor:7.2f}      0"


def _log(tmp_path, rows, *, ranks=4, program="all_reduce", op="all-reduce", tail=TAIL, name="run.log"):
    """A log as nccl-tests prints it; rows are (size, seconds out of place, seconds in place)."""
    devices = "\n".join(
        f"#  Rank {n:2d} Group  0 Pid {900 + n} on   worker device {n:2d} [0x{n:02x}] NVIDIA A100" for n in range(ranks)
    )
    factor = bus_factor(op, ranks)
    lines = [
        f"{size:12d} {size // 4:13d}     float     sum      -1 "
        f"{_cells(size, out, factor)} {_cells(size, within, factor)}"
        for size, out, within in rows
    ]
    path = tmp_path / name
    path.write_text(HEAD.format(program=program, ranks=ranks, devices=devices) + "\n".join(lines) + "\n" + tail)
    return path


def test_both_columns_of_a_log_are_read(tmp_path):
    found = read(_log(tmp_path, [(1024, 12.5e-6, 12.25e-6), (2**20, 51.4e-6, 52.74e-6)]))
    assert [(m.op, m.ranks, m.bytes, m.in_place) for m in found] == [
        ("all-reduce", 4, 1024, False),
        ("all-reduce", 4, 1024, True),
        ("all-reduce", 4, 2**20, False),
        ("all-reduce", 4, 2**20, True),
    ]
    assert [m.seconds for m in found] == pytest.approx([12.5e-6, 12.25e-6, 51.4e-6, 52.74e-6])
    assert found[2].busbw == pytest.approx(2**20 / 51.4e-6 * 1.5, rel=1e-3)


def test_log_of_an_older_version_without_redop_and_root_is_read(tmp_path):
    path = tmp_path / "old.log"
    path.write_text(
        "# nThread 1 nGpus 2 minBytes 33554432 maxBytes 67108864\n"
        "#   Rank  0 Pid   1320 on node device  0 [0x00] Tesla V100\n"
        "#   Rank  1 Pid   1320 on node device  1 [0x00] Tesla V100\n"
        "#                                             out-of-place                    in-place\n"
        "#       size         count    type     time   algbw   busbw  error     time   algbw   busbw  error\n"
        "#        (B)    (elements)             (us)  (GB/s)  (GB/s)            (us)  (GB/s)  (GB/s)\n"
        "    33554432       4194304   float    817.8   41.03   20.51  0e+00    785.1   42.74   21.37  2e-07\n"
    )
    assert [m.seconds for m in read(path, op="all-gather")] == pytest.approx([817.8e-6, 785.1e-6])


@pytest.mark.parametrize(
    ("program", "op"),
    [
        ("all_gather", "all-gather"),
        ("reduce_scatter", "reduce-scatter"),
        ("alltoall", "all-to-all"),
        ("reduce", "reduce"),
    ],
)
def test_operation_is_the_program_s(tmp_path, program, op):
    assert {m.op for m in read(_log(tmp_path, [(2**20, 1e-3, 1e-3)], program=program, op=op))} == {op}


def test_bus_bandwidth_that_belongs_to_another_number_of_ranks_is_refused(tmp_path):
    path = _log(tmp_path, [(2**20, 51.4e-6, 52.74e-6)])
    with pytest.raises(FormatError, match=r"run\.log:13: busbw 30\.6 GB/s does not follow .* all-reduce of 8 ranks"):
        read(path, ranks=8)


def _replaced(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return path


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("   51.40 ", "   fast  ", r"run\.log:13: time: 'fast' is not a number"),
        ("   51.40 ", "  -51.40 ", r"run\.log:13: time: -51\.40 is not possible"),
        ("      0\n", "      7\n", r"run\.log:13: 7 wrong values"),
        ("sum      -1", "", r"run\.log:13: 11 columns, where the header has 13"),
        ("0 OK", "3 FAILED", r"run\.log:14: 3 values out of bounds"),
        ("busbw #wrong     time", "speed #wrong     time", r"run\.log:11: the header lacks a column time or busbw"),
        ("Rank  1", "Rank  0", r"run\.log:6: rank 0 is listed twice"),
        ("all_reduce_perf", "sendrecv_perf", r"run\.log: sendrecv is not modelled"),
        ("all_reduce_perf", "something", r"run\.log: does not say which collective"),
    ],
)
def test_malformed_log_names_file_and_line(tmp_path, old, new, message):
    path = _replaced(_log(tmp_path, [(2**20, 51.4e-6, 52.74e-6)]), old, new)
    with pytest.raises(FormatError, match=message):
        read(path)


def test_empty_log_says_so(tmp_path):
    with pytest.raises(FormatError, match=r"run\.log: no line of measurements"):
        read(_log(tmp_path, []))


def test_log_becomes_a_table_of_a_profile(tmp_path):
    rows = [(2**power, 10e-6 + 2**power / 1e11, 9e-6 + 2**power / 1e11) for power in range(10, 30)]
    (table,) = tables(read(_log(tmp_path, rows)), link="nvlink", source="run")
    assert (table.op, table.ranks, table.hosts, table.grade, table.source) == ("all-reduce", 4, 1, "measured", "run")
    sizes = [point.bytes for point in table.points]
    assert sizes[0] == 2**10
    assert sizes[-1] == 2**29
    assert table.points[-1].time == pytest.approx(10e-6 + 2**29 / 1e11, rel=0.01)


def test_ranks_on_several_hosts_are_told_apart_from_those_on_one(tmp_path):
    path = _log(tmp_path, [(2**20, 51.4e-6, 52.74e-6)])
    path.write_text(
        path.read_text().replace("worker device  2", "other device  2").replace("worker device  3", "other device  3")
    )
    assert {row.hosts for row in read(path)} == {2}


def test_csv_is_read_with_its_unit_and_its_name(tmp_path):
    path = tmp_path / "allreduce_x_2gpu.csv"
    path.write_text(
        "size(B),count,type,time(ns),busbw(GB/s),time(ns),busbw(GB/s)\n1048576,262144,float,44210,23.72,45100,23.25\n"
    )
    first, second = read(path)
    assert (first.op, first.ranks, first.in_place, second.in_place) == ("all-reduce", 2, False, True)
    assert (first.seconds, first.busbw) == (pytest.approx(44.21e-6), pytest.approx(23.72e9))
    path.write_text(path.read_text().replace("45100", "soon"))
    with pytest.raises(FormatError, match=r"allreduce_x_2gpu\.csv:2: time: 'soon'"):
        read(path)


@pytest.mark.skipif(not (DATA / "megatron-a100").is_dir(), reason="the published tables are not on this machine")
@pytest.mark.parametrize("gpus", [2, 4, 8])
def test_published_tables_hold_together(gpus):
    path = DATA / "megatron-a100" / f"allreduce_a100_{gpus}gpu.csv"
    rows = read(path)
    assert recognises(path.read_text())
    assert len(rows) == 2 * (len(path.read_text().splitlines()) - 1)
    assert {row.ranks for row in rows} == {gpus}
