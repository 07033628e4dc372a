"""The cluster that the published Megatron iteration times were taken on, with the figures that are fitted to them.

Nodes of eight A100 behind NVSwitch, joined by HDR InfiniBand. How many adapters a node has is not published: the
profile has one for each GPU, and the fitted `network` is the part of their 8 x 200 Gbit/s that was reached (a third of
it is what four adapters would give at two thirds of their rate).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from emulation.profile import Profile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from emulation.collectives import CollectiveTable

PEAK = 312e12
BANDWIDTH = 2.039e12
ADAPTER = 25e9
NODE = 8
OPTIMIZER = 0.9
"""Part of the memory's bandwidth that the optimizer gets: long streams (Calculon's curve above 100 MB)."""


@dataclass(frozen=True)
class Figures:
    """What is fitted."""

    matmul: float
    """Part of the peak that a large product reaches."""
    rows: float
    """Tokens at which a product reaches half of it."""
    columns: float
    """Size of the rank's part of the weights at which it reaches half of it."""
    attention: float
    """Part of the peak that the products of attention reach."""
    memory: float
    """Part of the memory's bandwidth that operators get."""
    call: float
    """Seconds of the host to launch a kernel."""
    wide_call: float
    """Seconds more for a collective of all GPUs of a node."""
    micro_batch: float
    """Seconds per micro-batch and stage."""
    node_step: float
    """Seconds per step on one node."""
    cluster_step: float
    """Seconds per step on several nodes."""
    network: float
    """Part of the adapters' rate that is reached."""


@dataclass(frozen=True)
class Prior:
    """Of one figure: log-normal, within bounds."""

    median: float
    scale: float
    """Of the logarithm."""
    low: float
    high: float
    source: str


PRIORS = {
    "matmul": Prior(0.90, 0.08, 0.4, 1.0, "Calculon's A100: 0.90 of the peak from 16 GFLOP, 0.95 from 128"),
    "rows": Prior(200, 0.7, 1, 3000, "a few tiles of 128 rows"),
    "columns": Prior(60, 0.7, 1, 1000, "half a tile of 128 columns"),
    "attention": Prior(0.4, 0.4, 0.05, 1.0, "batched products with an inner size of 64 to 128"),
    "memory": Prior(0.75, 0.2, 0.3, 1.0, "Calculon's A100: 0.75 of the bandwidth at 10 MB"),
    "call": Prior(40e-6, 0.7, 1e-6, 200e-6, "some ten microseconds for each operator of an eager framework"),
    "wide_call": Prior(50e-6, 1.0, 1e-8, 5e-3, "unknown within an order of magnitude"),
    "micro_batch": Prior(1e-3, 1.0, 1e-5, 20e-3, "unknown within an order of magnitude"),
    "node_step": Prior(5e-3, 1.0, 1e-4, 50e-3, "unknown within an order of magnitude"),
    "cluster_step": Prior(0.2, 0.7, 1e-3, 1.0, "unknown within an order of magnitude"),
    "network": Prior(0.35, 0.3, 0.05, 1.0, "four of eight adapters at 70 %"),
}
NAMES = tuple(item.name for item in fields(Figures))


def cluster(figures: Figures, gpus: int, tables: Sequence[CollectiveTable]) -> Profile:
    """A profile with room for `gpus` GPUs; several nodes where they need more than one.

    Args:
        figures: what was fitted.
        gpus: that are used.
        tables: of all-reduce within a node.
    """
    nodes = max(1, -(-gpus // NODE))
    document = _document(nodes, figures)
    # Tables are checked already; their points hold plain numbers, which a document would have to spell with units.
    profile = Profile.model_validate(document)
    return profile.model_copy(update={"collective_tables": list(tables)})


def _document(nodes: int, figures: Figures) -> dict[str, Any]:
    gpu_link = {"kind": "nvlink", "rate": _figure("25 GB/s", "a100"), "lanes": 12}
    pcie = {"kind": "pcie", "rate": _figure("31.5 GB/s", "pcie"), "latency": _figure("400 ns", "assumed")}
    host = {
        "name": "host",
        "count": nodes,
        "cpu": "cpu",
        "cores": 128,
        "devices": [{"name": "gpu", "model": "a100", "count": NODE}],
        "nics": [{"name": "nic", "count": NODE, "rdma": True}],
        "switches": [{"name": "nvswitch"}],
        "links": [
            {
                "name": "nvlink",
                "ends": ["gpu", "nvswitch"],
                "efficiency": _figure(0.8, "nccl"),
                "latency": _figure("350 ns", "assumed"),
                **gpu_link,
            },
            {"name": "pcie-nic", "ends": ["gpu", "nic"], "pairing": "index", **pcie},
            {"name": "pcie", "ends": ["nic", "cpu"], **pcie},
        ],
        "software": _software(),
    }
    adapter = {
        "name": "hdr",
        "kind": "network",
        "ends": ["nic", "leaf"],
        "rate": _figure("200 Gbit/s", "hdr"),
        "efficiency": _figure(figures.network, "fit"),
        "latency": _figure("600 ns", "assumed"),
    }
    steps = {"nvlink": "1.9 us", "pcie": "2.5 us", "network": "4.0 us"}
    ring = {"name": "ring-ll128", "algorithm": "ring", "base": "14 us", "step": steps, "bandwidth": 0.92}
    return {
        "schema": 1,
        "name": "megatron-a100",
        "sources": SOURCES,
        "models": {"a100": _gpu(figures), "cpu": _cpu()},
        "hosts": [host],
        "fabric": {"switches": [{"name": "leaf"}], "links": [adapter]},
        "collectives": [{**ring, "bandwidth": 1.0, "grade": "prior", "source": "nccl"}],
        "framework": {
            "call": _seconds(figures.call),
            "wide_call": _seconds(figures.wide_call),
            "micro_batch": _seconds(figures.micro_batch),
            "step": _seconds(figures.cluster_step if nodes > 1 else figures.node_step),
        },
        "fragmentation": _figure("6 %", "assumed"),
    }


SOURCES = {
    "a100": "NVIDIA A100 80 GB SXM datasheet",
    "pcie": "PCI Express base specification, generation 4, 16 lanes",
    "hdr": "InfiniBand HDR: 200 Gbit/s per port and direction",
    "nccl": "constants of NCCL's tuner (src/graph/tuning.cc) and topology model (src/graph/topo.h)",
    "tables": "all-reduce tables published with vTrain",
    "calculon": "A100 efficiency curves shipped with Calculon",
    "assumed": "an order of magnitude, not taken from any one document",
    "fit": "fitted to published Megatron iteration times (emulation.validation.megatron)",
}


def _gpu(figures: Figures) -> dict[str, Any]:
    moving = {"bytes": _constant(figures.memory, "B", "fit")}
    products = _constant(figures.matmul, "FLOP", "fit")
    half = {"rows": figures.rows, "columns": figures.columns, "grade": "prior", "source": "fit"}
    families = {
        "matmul": {"flops": products, "half": half, **moving},
        "attention": {"flops": _constant(figures.attention, "FLOP", "fit"), **moving},
        "elementwise": moving,
        "normalization": moving,
        "embedding": moving,
        "optimizer": {"bytes": _constant(OPTIMIZER, "B", "calculon")},
    }
    return {
        "kind": "gpu",
        "memory": _figure("80 GB", "a100"),
        "memory_bandwidth": {"peak": _figure(f"{BANDWIDTH / 1e12:g} TB/s", "a100")},
        "compute": {"fp16": {"peak": _figure(f"{PEAK / 1e12:g} TFLOP/s", "a100"), "families": families}},
        # The host's time to launch is in `framework`; the device does not wait for it.
        "launch": _figure("0 s", "fit"),
    }


def _constant(value: float, unit: str, source: str) -> dict[str, Any]:
    """An efficiency that does not depend on the work."""
    return {"grade": "prior", "source": source, "points": [{"at": f"1 {unit}", "value": value}]}


def _cpu() -> dict[str, Any]:
    return {
        "kind": "cpu",
        "memory": _figure("1 TB", "assumed"),
        "memory_bandwidth": {"peak": _figure("200 GB/s", "assumed")},
        "compute": {"fp32": {"peak": _figure("4 TFLOP/s", "assumed")}},
        "launch": _figure("1 us", "assumed"),
    }


def _software() -> dict[str, Any]:
    """What transports of the harness pay; nothing here uses them."""
    return {
        "memcpy": {"peak": _figure("10 GB/s", "assumed")},
        "page": _figure("4 KiB", "assumed"),
        "tcp": {
            "stream": _figure("4 GB/s", "assumed"),
            "per_message": _figure("30 us", "assumed"),
            "efficiency": _figure(0.94, "assumed"),
        },
        "rpc": {
            "per_call": _figure("400 us", "assumed"),
            "serialise": _figure("4 GB/s", "assumed"),
            "stream": _figure("2 GB/s", "assumed"),
            "per_message": _figure("30 us", "assumed"),
            "message": _figure("16 MiB", "assumed"),
        },
    }


def _figure(value: Any, source: str) -> dict[str, Any]:
    grade = "prior" if source in {"fit", "nccl", "calculon", "assumed"} else "datasheet"
    return {"value": value, "grade": grade, "source": source}


def _seconds(value: float) -> dict[str, Any]:
    return _figure(f"{value!r} s", "fit")
