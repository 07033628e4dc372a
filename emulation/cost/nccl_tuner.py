"""NCCL's tuner as a prior: what the library takes a collective to cost before anybody has measured it.

A profile that says `collectives: {prior: nccl, generation: ampere}` gets one option for each algorithm and protocol.
Latencies are the tuner's `baseLatencies` and `hwLatencies` (src/graph/tuning.cc), by the kind of the slowest link a
step crosses; `bandwidth` is the part of the links' rate a protocol reaches. The links' own rates (`src/graph/topo.h`:
20 GB/s for an NVLink of V100 and A100, 20.6 GB/s for one of H100, 12 GB/s for PCIe 3 x16 and a 100 Gbit/s adapter) are
in the profile as the efficiency of its links, and channels are the rings that the topology allows.

A tuner's constants are made to choose between algorithms, not to predict: against a published A100 table they are
4 % fast at 1 GB on eight GPUs and half the true time at 1 MB.
"""

from __future__ import annotations

from typing import Any

MICROSECONDS = {
    # base, then a step over NVLink, PCIe and the network
    "tree-simple": (8.4, 4.0, 4.0, 14.0),
    "tree-ll128": (14.0, 1.25, 1.9, 8.5),
    "tree-ll": (6.8, 0.6, 1.0, 5.0),
    "ring-simple": (8.4, 3.4, 5.7, 14.0),
    "ring-ll128": (14.0, 1.9, 2.5, 4.0),
    "ring-ll": (6.6, 0.6, 1.0, 2.7),
}
BANDWIDTH = {
    "ring-simple": 1.0,
    "ring-ll128": 0.92,
    "ring-ll": 0.5,
    "tree-simple": 1.0,
    "tree-ll128": 0.92,
    "tree-ll": 0.26,
}
"""LL sends a flag with every four bytes and LL128 with every 120; the tuner counts a tree with LL at 1/3.8."""
KINDS = ("nvlink", "pcie", "network")
NVLS_EFFICIENCY = {"volta": None, "ampere": None, "hopper": 0.85, "blackwell": 0.74}
"""By GPU generation; the first two have switches that cannot add."""
NVLS_MICROSECONDS = 25.0


def options(generation: str, source: str) -> list[dict[str, Any]]:
    """Collective options as a profile would list them, in order of preference where two are equally fast.

    Args:
        generation: of the GPUs: `volta`, `ampere`, `hopper` or `blackwell`.
        source: key into the profile's `sources`.
    """
    shared = {"grade": "prior", "source": source}
    found = []
    for name, bandwidth in BANDWIDTH.items():
        base, *steps = MICROSECONDS[name]
        step = {kind: f"{value} us" for kind, value in zip(KINDS, steps, strict=True)}
        algorithm = name.partition("-")[0]
        found.append(
            {"name": name, "algorithm": algorithm, "base": f"{base} us", "step": step, "bandwidth": bandwidth, **shared}
        )
    efficiency = NVLS_EFFICIENCY[generation]
    if efficiency:
        step = {"nvlink": f"{NVLS_MICROSECONDS} us"}
        found.append(
            {"name": "nvls", "algorithm": "nvls", "base": "0 s", "step": step, "bandwidth": efficiency, **shared}
        )
    return found
