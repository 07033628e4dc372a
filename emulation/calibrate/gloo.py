"""Messages and collectives between processes of this machine, through torch.distributed and gloo over loopback.

What is timed is what a workload graph means by a collective: from the moment the last rank enters to the moment the
last one leaves. The ranks share one clock (`time.perf_counter` counts from boot on Linux), so both moments can be read
off their own stamps. Several calls follow one another in each sample, as in nccl-tests and in training: where ranks
share cores, waking the threads of the call before is part of what the next one takes (on two virtual cores a small
all-reduce takes three times as long as one that comes after a pause). A message is half of a round trip.

Sizes are those of `emulation.graph.Workload.collective`: the full buffer, which for an all-gather is what each rank has
afterwards and for a reduce-scatter what it had before.
"""

from __future__ import annotations

import random
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from emulation.calibrate.sampling import WARMUPS, Series

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from emulation.calibrate.pool import Pool, Worker

OPERATIONS = ("send", "all-reduce", "all-gather", "reduce-scatter", "broadcast", "all-to-all")
SIZES = tuple(2**power for power in range(6, 25, 2))
"""64 B to 16 MiB: from a loss to the gradients of a small model."""
QUICK_SIZES = tuple(2**power for power in range(10, 23, 4))
TIMEOUT = timedelta(seconds=60)
CALLS = 6
"""Calls of an operation that follow one another in a sample."""
PRODUCTS = 12
"""Matrix products of 256 that are computed beside an all-reduce."""


def measure(pool: Pool, ranks: int, *, rounds: int, sizes: Sequence[int] = SIZES) -> tuple[list[Series], list[str]]:
    """Time every operation that gloo has for the first `ranks` workers.

    Returns:
        The series, and a sentence for every operation that could not be run.

    Raises:
        ProbeError: a worker failed or hung.
    """
    operations = [op for op in OPERATIONS if op != "send" or ranks == 2]
    answers = pool.run(_times, ranks, ranks=ranks, operations=operations, sizes=list(sizes), rounds=rounds)
    series: list[Series] = []
    for key, stamps in answers[0]["stamps"].items():
        op, nbytes = key
        everyone = [answer["stamps"][key] for answer in answers]
        done = CALLS * (2 if op == "send" else 1)
        samples = [_span([stamp[n] for stamp in everyone]) / done for n in range(len(stamps))]
        used = sum(answer["processor"][key] for answer in answers) / len(stamps) / done
        labels = {"op": op, "ranks": ranks, "bytes": nbytes, "link": "cpu"}
        series.append(Series("gloo", labels, samples, extra={"processor_s": used}))
    missing = [f"gloo has no {op} here: {why}" for op, why in answers[0]["missing"].items()]
    return series, missing


def _span(stamps: list[tuple[float, float]]) -> float:
    """From the last entry to the last exit."""
    return max(end for _, end in stamps) - max(begin for begin, _ in stamps)


def group(worker: Worker, ranks: int) -> Any:
    """The process group of the first `ranks` workers, made once; all of them must ask for it."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    name = f"group of {ranks}"
    if name not in worker.kept:
        store = dist.FileStore(f"{worker.rendezvous}-{ranks}", ranks)
        worker.kept[name] = dist.ProcessGroupGloo(store, worker.rank, ranks, timeout=TIMEOUT)
    return worker.kept[name]


def _times(worker: Worker, *, ranks: int, operations: list[str], sizes: list[int], rounds: int) -> dict[str, Any]:
    """One rank's (begin, end) of every sample, and its seconds of processor time, by (operation, bytes)."""
    calls, missing = _calls(worker, ranks, operations, sizes)
    stamps: dict[tuple[str, int], list[tuple[float, float]]] = {key: [] for key in calls}
    processor = dict.fromkeys(calls, 0.0)
    order = list(calls)
    shuffle = random.Random(0)
    for number in range(-WARMUPS, rounds):
        shuffle.shuffle(order)
        for key in order:
            worker.meet(ranks)
            used, begin = time.process_time(), time.perf_counter()
            for _ in range(CALLS):
                calls[key]()
            end = time.perf_counter()
            if number >= 0:
                stamps[key].append((begin, end))
                processor[key] += time.process_time() - used
    return {"stamps": stamps, "processor": processor, "missing": missing}


def _calls(
    worker: Worker, ranks: int, operations: list[str], sizes: list[int]
) -> tuple[dict[tuple[str, int], Callable[[], object]], dict[str, str]]:
    """What to call for every (operation, bytes), and why an operation is left out.

    Every rank finds the same, since whether gloo has an operation depends on its version alone.
    """
    backend = group(worker, ranks)
    calls: dict[tuple[str, int], Callable[[], object]] = {}
    missing: dict[str, str] = {}
    for op in operations:
        for nbytes in sizes:
            call = _call(op, backend, worker.rank, ranks, max(1, nbytes // (4 * ranks)) * ranks)
            try:
                call()
            except (RuntimeError, AttributeError) as error:
                missing[op] = str(error).splitlines()[0]
                break
            calls[op, nbytes] = call
    return calls, missing


def _call(op: str, backend: Any, rank: int, ranks: int, numbers: int) -> Callable[[], object]:
    """One operation on float32 tensors of `numbers` in all (a multiple of `ranks`)."""
    import torch
    import torch.distributed as dist

    whole = torch.ones(numbers)
    part = torch.ones(numbers // ranks)
    match op:
        case "send":
            other = 1 - rank
            there, back = (backend.send, backend.recv) if rank == 0 else (backend.recv, backend.send)
            return lambda: (there([whole], other, 0).wait(), back([whole], other, 0).wait())
        case "all-reduce":
            options = dist.AllreduceOptions()
            options.reduceOp = dist.ReduceOp.MAX
            return lambda: backend.allreduce([whole], options).wait()
        case "all-gather":
            return lambda: backend._allgather_base(whole, part).wait()
        case "reduce-scatter":
            return lambda: backend._reduce_scatter_base(part, whole, dist.ReduceScatterOptions()).wait()
        case "broadcast":
            return lambda: backend.broadcast(whole, 0).wait()
        case _:
            other = torch.empty(numbers)
            return lambda: backend.alltoall_base(other, whole, [], []).wait()


def overlap(pool: Pool, ranks: int, *, rounds: int, nbytes: int = 2**22) -> list[Series]:
    """Matrix products alone, an all-reduce alone, and the products while the all-reduce is under way.

    Raises:
        ProbeError: a worker failed or hung.
    """
    answers = pool.run(_overlap, ranks, ranks=ranks, rounds=rounds, nbytes=nbytes)
    series = []
    for what in answers[0]:
        samples = [max(values) for values in zip(*(answer[what] for answer in answers), strict=True)]
        series.append(Series("overlap", {"what": what, "ranks": ranks, "bytes": nbytes}, samples))
    return series


def _overlap(worker: Worker, *, ranks: int, rounds: int, nbytes: int) -> dict[str, list[float]]:
    import torch
    import torch.distributed as dist

    backend = group(worker, ranks)
    gradients, left, right = torch.ones(nbytes // 4), torch.ones(256, 256), torch.ones(256, 256)
    options = dist.AllreduceOptions()
    options.reduceOp = dist.ReduceOp.MAX

    def compute() -> None:
        for _ in range(PRODUCTS):
            torch.mm(left, right)

    times: dict[str, list[float]] = {"compute": [], "all-reduce": [], "compute during all-reduce": [], "both": []}
    for number in range(-2, rounds):
        worker.meet(ranks)
        stamps = [time.perf_counter()]
        compute()
        stamps.append(time.perf_counter())
        worker.meet(ranks)
        stamps.append(time.perf_counter())
        backend.allreduce([gradients], options).wait()
        stamps.append(time.perf_counter())
        worker.meet(ranks)
        stamps.append(time.perf_counter())
        work = backend.allreduce([gradients], options)
        compute()
        stamps.append(time.perf_counter())
        work.wait()
        stamps.append(time.perf_counter())
        if number >= 0:
            spans = ((0, 1), (2, 3), (4, 5), (4, 6))
            for what, (begin, end) in zip(times, spans, strict=True):
                times[what].append(stamps[end] - stamps[begin])
    return times
