import pytest

from emulation.evaluate import simulate
from emulation.graph import Workload, WorkloadError

A, B = "host0/gpu0", "host0/gpu1"


def _unknown_device():
    work = Workload()
    work.compute("host0/gpu9", 1.0)
    return work


def _cycle():
    work = Workload()
    first = work.host(A, 1e-6, name="first")
    work.order(work.host(B, 1e-6, after=[first], name="second"), first)
    return work


def _stream_against_edges():
    work = Workload()
    first = work.host(A, 1e-6, name="first")
    work.order(work.host(A, 1e-6, name="second"), first)
    return work


def _orders_differ():
    work = Workload()
    for rank, ops in {A: ("all-reduce", "broadcast"), B: ("broadcast", "all-reduce")}.items():
        for op in ops:
            work.enter(op, rank, [A, B], 1024)
    return work


def _one_rank_short():
    work = Workload()
    work.enter("all-reduce", A, [A, B], 1024)
    return work


def _send_alone():
    work = Workload()
    work.send(A, B, 10, tag="x")
    return work


def _sizes_differ():
    work = Workload()
    work.send(A, B, 10)
    work.recv(A, B, 11)
    return work


def _crossed_receives():
    work = Workload()
    got_a = work.recv(B, A, 10, name="got a")
    work.send(A, B, 10, after=[got_a])
    got_b = work.recv(A, B, 10, name="got b")
    work.send(B, A, 10, after=[got_b])
    return work


def _unknown_dtype():
    work = Workload()
    work.compute(A, 1.0, dtype="fp61")
    return work


WRONG = [
    (_unknown_device, r"#0 compute: the cluster has no device 'host0/gpu9'; did you mean 'host0/gpu\d'"),
    (_cycle, "cycle: #0 host 'first' -> #1 host 'second' -> #0 host 'first'"),
    (_stream_against_edges, "cycle: "),
    (_orders_differ, "host0/gpu0: #0 all-reduce .*, #1 broadcast .*\n  host0/gpu1: #2 broadcast"),
    (_one_rank_short, "host0/gpu1: nothing"),
    (_send_alone, r"#0 send \(host0/gpu0 -> host0/gpu1, tag 'x'\) has no matching receive"),
    (_sizes_differ, "sizes differ: #0 send of 10 B, #1 recv of 11 B"),
    (_crossed_receives, "deadlock: 4 nodes can never run\n"),
    (_unknown_dtype, "no peak for 'fp61'; did you mean 'fp16'"),
]


@pytest.mark.parametrize(("build", "message"), WRONG, ids=[build.__name__[1:] for build, _ in WRONG])
def test_wrong_workload_is_refused_with_the_nodes_named(small, build, message):
    with pytest.raises(WorkloadError, match=message):
        simulate(build(), small())


@pytest.mark.parametrize(
    "call",
    [
        lambda work: work.host(A, -1.0),
        lambda work: work.host(A, float("nan")),
        lambda work: work.compute(A, float("inf")),
        lambda work: work.transfer(A, B, -1),
        lambda work: work.transfer(A, B, 1, cap=0.0),
        lambda work: work.host(A, 1.0, after=[0]),
        lambda work: work.free(0),
        lambda work: work.collective("all-reduse", [A, B], 1),
        lambda work: work.collective("all-reduce", [], 1),
        lambda work: work.enter("all-reduce", A, [B], 1),
    ],
    ids=["negative", "nan", "inf", "bytes", "cap", "after", "free", "op", "empty-group", "outside-group"],
)
def test_impossible_node_is_refused_at_once(call):
    with pytest.raises(WorkloadError):
        call(Workload())


def test_halves_of_a_transfer_cost_what_the_transfer_does(small):
    whole, halves = Workload(), Workload()
    whole.transfer(A, B, 10**6, after=[whole.host(A, 3e-6)])
    halves.recv(A, B, 10**6)
    halves.send(A, B, 10**6, after=[halves.host(A, 3e-6)])
    assert simulate(halves, small()).picoseconds == simulate(whole, small()).picoseconds == 103_000_000


def test_ranks_enter_a_collective_and_it_starts_with_the_last(small):
    group = [A, B]
    whole, entered = Workload(), Workload()
    late = whole.host(B, 7e-6)
    whole.collective("all-reduce", group, 10**6, after=[late])
    for rank in group:
        entered.enter("all-reduce", rank, group, 10**6, after=[entered.host(B, 7e-6)] if rank == B else [])
    assert simulate(entered, small()).picoseconds == simulate(whole, small()).picoseconds
