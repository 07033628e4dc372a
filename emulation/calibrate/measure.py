"""Run the probes: which there are, what each needs, and in which order.

A calibration takes about three minutes, a quick one less than 45 seconds. It starts as many worker processes as a local
job has ranks at most (`PROCESSES`), and between probes all of them sleep.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import os
import tempfile
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

from emulation.calibrate import accelerator, gloo, host, operators, rpc
from emulation.calibrate.pool import Pool, ProbeError
from emulation.calibrate.sampling import clock_resolution

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from emulation.calibrate.sampling import Series

PROCESSES = 4
"""Ranks of the largest local job that is measured."""
GROUPS = (2, 3, 4)
FORMAT = 1
INSTALL_TORCH = "PyTorch is not installed: pip install 'harness[models]'"


@dataclass(frozen=True)
class Probe:
    """One thing that is measured."""

    name: str
    about: str
    run: Callable[[Measurement, Pool], None]
    needs: Literal["", "torch", "grpc"] = ""


@dataclass
class Measurement:
    """Everything a calibration saw."""

    quick: bool = False
    machine: dict[str, Any] = field(default_factory=dict)
    started: str = ""
    series: list[Series] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    """Probe -> why it, or a part of it, was not run."""
    failed: list[str] = field(default_factory=list)
    """Probes that broke off; their reason is in `skipped`."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Probe -> how long it took."""

    def of(self, probe: str, **labels: Any) -> list[Series]:
        """The series of a probe that have these labels."""
        return [
            s for s in self.series if s.probe == probe and all(s.labels.get(k) == value for k, value in labels.items())
        ]

    def rounds(self, full: int) -> int:
        """Samples of a case: `full`, or a third of it when in a hurry."""
        return max(5, full // 3) if self.quick else full

    def to_json(self) -> dict[str, Any]:
        """The raw-sample file, without the fits."""
        return {
            "format": FORMAT,
            "started": self.started,
            "quick": self.quick,
            "machine": self.machine,
            "seconds": self.seconds,
            "skipped": self.skipped,
            "series": [series.to_json() for series in self.series],
        }


def _memcpy(found: Measurement, pool: Pool) -> None:
    sizes = host.QUICK_COPIES if found.quick else host.COPIES
    for processes in (1, _cores(pool)):
        found.series += host.copies(pool, processes, rounds=found.rounds(21), sizes=sizes)


def _page(found: Measurement, pool: Pool) -> None:
    found.series += host.pages(pool, rounds=5)


def _tcp(found: Measurement, pool: Pool) -> None:
    found.series += host.sockets(pool, rounds=found.rounds(30))


def _gemm(found: Measurement, pool: Pool) -> None:
    for processes in (1, _cores(pool)):
        found.series += host.products(pool, processes, rounds=found.rounds(20))


def _operators(found: Measurement, pool: Pool) -> None:
    found.series += operators.alone(pool, rounds=found.rounds(20), quick=found.quick)


def _contention(found: Measurement, pool: Pool) -> None:
    levels = sorted({1, _cores(pool), pool.count})
    found.series += operators.crowded(pool, levels, rounds=found.rounds(12))


def _gloo(found: Measurement, pool: Pool) -> None:
    for ranks in GROUPS:
        sizes = gloo.QUICK_SIZES if found.quick else gloo.SIZES
        series, missing = gloo.measure(pool, ranks, rounds=found.rounds(20), sizes=sizes)
        found.series += series
        if missing:
            found.skipped["gloo"] = "; ".join(missing)


def _overlap(found: Measurement, pool: Pool) -> None:
    for ranks in (2, PROCESSES):
        found.series += gloo.overlap(pool, ranks, rounds=found.rounds(20))


def _rpc(found: Measurement, pool: Pool) -> None:
    found.series += rpc.calls(pool, rounds=found.rounds(30))


def _gpu(found: Measurement, pool: Pool) -> None:
    series, described = accelerator.measure(pool, rounds=found.rounds(20))
    found.series += series
    found.machine["gpus"] = described
    if not described:
        found.skipped["gpu"] = "PyTorch sees no CUDA device"


PROBES = {
    probe.name: probe
    for probe in (
        Probe("memcpy", "copies of 4 KiB to 64 MiB, alone and on all cores at once", _memcpy),
        Probe("page", "the first touch of a fresh page", _page),
        Probe("tcp", "messages between two processes over loopback", _tcp),
        Probe("gemm", "matrix products with NumPy, alone and on all cores at once", _gemm),
        Probe("operators", "the operators of a training step, forward and backward, by size", _operators, "torch"),
        Probe("contention", "the same operators on one, all, and more processes than cores", _contention, "torch"),
        Probe("gloo", "messages and collectives of 2 to 4 processes", _gloo, "torch"),
        Probe("overlap", "matrix products beside an all-reduce", _overlap, "torch"),
        Probe("rpc", "gRPC calls, and packing their messages", _rpc, "grpc"),
        Probe("gpu", "launches, copies, products and NCCL on a machine with CUDA", _gpu, "torch"),
    )
}


class UnknownProbe(ValueError):
    """A probe that does not exist; `suggestion` is the nearest that does."""

    def __init__(self, name: str) -> None:
        near = difflib.get_close_matches(name, PROBES, n=1)
        self.name, self.suggestion = name, near[0] if near else ""
        super().__init__(f"no probe {name!r}; there is {', '.join(PROBES)}")


def measure(
    only: Sequence[str] = (), *, quick: bool = False, progress: Callable[[Probe, int, int], None] | None = None
) -> Measurement:
    """Run the probes, all or `only` these.

    Args:
        only: names of probes.
        quick: fewer sizes and samples.
        progress: called before each probe with it, its number and how many there are.

    Raises:
        UnknownProbe: `only` names none.
        ProbeError: a worker process could not be started.
    """
    for name in only:
        if name not in PROBES:
            raise UnknownProbe(name)
    chosen = [probe for name, probe in PROBES.items() if not only or name in only]
    found = Measurement(quick=quick, started=datetime.now(UTC).isoformat(timespec="seconds"))
    found.machine = host.describe() | {"clock_resolution_s": clock_resolution(), "packages": _packages()}
    runnable = [probe for probe in chosen if not _skip(probe, found)]
    with contextlib.ExitStack() as stack:
        pool: Pool | None = None
        for number, probe in enumerate(runnable):
            if progress:
                progress(probe, number, len(runnable))
            pool = pool or stack.enter_context(_workers())
            if not _run(probe, found, pool):
                stack.close()
                pool = None
    found.machine["load_average_after"] = list(os.getloadavg())
    return found


@contextlib.contextmanager
def _workers() -> Iterator[Pool]:
    with tempfile.TemporaryDirectory() as folder, Pool(PROCESSES, folder) as pool:
        yield pool


def _run(probe: Probe, found: Measurement, pool: Pool) -> bool:
    """One probe; False where it failed, after which the workers are of no use to the next."""
    begin = time.perf_counter()
    try:
        probe.run(found, pool)
    except ProbeError as error:
        # The others' figures are as good as they are.
        found.skipped[probe.name] = str(error)
        found.failed.append(probe.name)
        return False
    found.seconds[probe.name] = time.perf_counter() - begin
    return True


def _skip(probe: Probe, found: Measurement) -> bool:
    lacking = INSTALL_TORCH if probe.needs == "torch" and find_spec("torch") is None else ""
    lacking = lacking or (rpc.missing() if probe.needs == "grpc" else "")
    if lacking:
        found.skipped[probe.name] = lacking
    return bool(lacking)


def _cores(pool: Pool) -> int:
    """Cores that can be kept busy by the workers there are."""
    return min(len(os.sched_getaffinity(0)), pool.count)


def _packages() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("numpy", "torch", "grpcio"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def digest(content: bytes) -> str:
    """SHA-256 of a raw-sample file."""
    return hashlib.sha256(content).hexdigest()


def dump(document: dict[str, Any]) -> bytes:
    """A raw-sample file: JSON, one line a series so that it can be read and compared, six digits a number."""
    head = {key: value for key, value in document.items() if key != "series"}
    text = json.dumps(head, indent=1, sort_keys=True)[:-2]
    lines = ",\n".join("  " + json.dumps(_rounded(series)) for series in document["series"])
    return f'{text},\n "series": [\n{lines}\n ]\n}}\n'.encode()


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value
