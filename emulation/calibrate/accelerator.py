"""CUDA devices: launches, copies to and from the host, matrix products, memory, and NCCL between them.

Written against PyTorch's documented interface and not yet run on a GPU: the machines this project is developed on have
none. Every time is taken with CUDA events, or around a synchronisation where the host's own time is what is asked for.
"""

from __future__ import annotations

import os
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from emulation.calibrate.sampling import WARMUPS, Series

if TYPE_CHECKING:
    from collections.abc import Callable

    from emulation.calibrate.pool import Pool, Worker

COPIES = tuple(2**power for power in range(12, 29, 2))
PRODUCTS = tuple((m, n, k) for m in (256, 1024, 4096) for n, k in ((512, 512), (4096, 1024), (4096, 4096)))
COLLECTIVES = tuple(2**power for power in range(10, 29, 2))
DTYPES = ("float32", "bfloat16")
LAUNCHES = 1000
OPERATIONS = ("all-reduce", "all-gather", "reduce-scatter", "broadcast", "all-to-all")


def measure(pool: Pool, *, rounds: int) -> tuple[list[Series], list[dict[str, Any]]]:
    """Everything on device 0, then NCCL over 2, 4, 8, ... of as many devices as there are workers.

    Returns:
        The series, and what each device is; both empty without CUDA.

    Raises:
        ProbeError: a worker failed or hung.
    """
    devices: list[dict[str, Any]] = pool.run(_devices)[0]
    if not devices:
        return [], []
    series: list[Series] = pool.run(_single, rounds=rounds)[0]
    ranks = 2
    while ranks <= min(len(devices), pool.count):
        answers = pool.run(_nccl, ranks, ranks=ranks, rounds=rounds)
        for n, first in enumerate(answers[0]):
            slowest = [max(values) for values in zip(*(answer[n].samples for answer in answers), strict=True)]
            series.append(Series("nccl", first.labels, slowest, first.repeats))
        ranks *= 2
    return series, devices


def _devices(worker: Worker) -> list[dict[str, Any]]:
    import torch

    if worker.rank or not torch.cuda.is_available():
        return []
    found = [torch.cuda.get_device_properties(n) for n in range(torch.cuda.device_count())]
    return [{"name": device.name, "memory_bytes": device.total_memory} for device in found]


def _single(worker: Worker, *, rounds: int) -> list[Series]:
    import torch

    device = torch.device("cuda", worker.rank)
    torch.cuda.set_device(device)
    series = [_launches(torch, device, rounds)]
    for nbytes in COPIES:
        there, here = torch.empty(nbytes, dtype=torch.uint8, device=device), torch.empty(nbytes, dtype=torch.uint8)
        here, other = here.pin_memory(), torch.empty_like(there)
        copies = {
            "h2d": partial(there.copy_, here, non_blocking=True),
            "d2h": partial(here.copy_, there, non_blocking=True),
            "d2d": partial(other.copy_, there),
        }
        for what, action in copies.items():
            series.append(_on_device(torch, "gpu-copy", {"what": what, "bytes": nbytes}, action, rounds))
    for dtype in DTYPES:
        for m, n, k in PRODUCTS:
            kind = getattr(torch, dtype)
            left, right = (torch.randn(shape, device=device, dtype=kind) for shape in ((m, k), (k, n)))
            labels = {"family": "matmul", "dtype": dtype, "shape": f"{m}x{n}x{k}", "flops": 2.0 * m * n * k}
            series.append(_on_device(torch, "gpu-gemm", labels, partial(torch.mm, left, right), rounds))
    return series


def _launches(torch: Any, device: Any, rounds: int) -> Series:
    """Host time of one small kernel among many: what a stream of them cannot go below."""
    small = torch.zeros(1, device=device)
    samples = []
    for number in range(-WARMUPS, rounds):
        torch.cuda.synchronize(device)
        begin = time.perf_counter()
        for _ in range(LAUNCHES):
            small.add_(1)
        torch.cuda.synchronize(device)
        if number >= 0:
            samples.append((time.perf_counter() - begin) / LAUNCHES)
    return Series("gpu-launch", {"what": "launch"}, samples, LAUNCHES)


def _on_device(torch: Any, probe: str, labels: dict[str, Any], action: Callable[[], object], rounds: int) -> Series:
    """Device time of an action, by events around it on the current stream."""
    samples = []
    for number in range(-WARMUPS, rounds):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        action()
        end.record()
        end.synchronize()
        if number >= 0:
            samples.append(begin.elapsed_time(end) / 1e3)
    return Series(probe, labels, samples)


def _nccl(worker: Worker, *, ranks: int, rounds: int) -> list[Series]:
    import torch
    import torch.distributed as dist

    device = torch.device("cuda", worker.rank)
    torch.cuda.set_device(device)
    store = dist.FileStore(f"{worker.rendezvous}-nccl-{ranks}", ranks)
    os.environ.setdefault("NCCL_DEBUG", "WARN")
    dist.init_process_group("nccl", store=store, rank=worker.rank, world_size=ranks)
    try:
        series = []
        for op in OPERATIONS:
            for nbytes in COLLECTIVES:
                action = _collective(torch, dist, op, max(1, nbytes // (4 * ranks)) * ranks, ranks, device)
                labels = {"op": op, "ranks": ranks, "bytes": nbytes, "link": "nvlink"}
                series.append(_on_device(torch, "nccl", labels, action, rounds))
        return series
    finally:
        dist.destroy_process_group()


def _collective(torch: Any, dist: Any, op: str, numbers: int, ranks: int, device: Any) -> Callable[[], object]:
    whole, part = torch.ones(numbers, device=device), torch.ones(numbers // ranks, device=device)
    match op:
        case "all-reduce":
            return lambda: dist.all_reduce(whole, op=dist.ReduceOp.MAX)
        case "all-gather":
            return lambda: dist.all_gather_into_tensor(whole, part)
        case "reduce-scatter":
            return lambda: dist.reduce_scatter_tensor(part, whole)
        case "broadcast":
            return lambda: dist.broadcast(whole, 0)
        case _:
            other = torch.empty_like(whole)
            return lambda: dist.all_to_all_single(other, whole)
