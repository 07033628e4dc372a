"""The part of a profile that describes CUDA devices; not yet run on a GPU, but tested on made-up samples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from emulation.calibrate import fit
from emulation.calibrate.figure_text import duration, flop_rate, rate, rounded, size

if TYPE_CHECKING:
    from emulation.calibrate.measure import Measurement

NAMES = {"float32": "fp32", "bfloat16": "bf16"}


def describe(found: Measurement, document: dict[str, Any], source: str) -> None:
    """Add the devices, and their links to the host and to one another, to a profile's plain data.

    Args:
        found: what was measured; without GPU series nothing is added.
        document: the profile.
        source: key of the probe in `sources`.
    """
    if not source:
        return
    figure = {"grade": "measured", "source": source}
    copies = {what: found.of("gpu-copy", what=what) for what in ("h2d", "d2h", "d2d")}
    within = fit.alpha_beta([2 * s.labels["bytes"] for s in copies["d2d"]], [s.median for s in copies["d2d"]])
    bus = [*copies["h2d"], *copies["d2h"]]
    across = fit.alpha_beta([s.labels["bytes"] for s in bus], [s.median for s in bus])
    gpus = found.machine["gpus"]
    document["models"]["gpu"] = {
        "kind": "gpu",
        "memory": {"value": size(min(gpu["memory_bytes"] for gpu in gpus)), **figure},
        "memory_bandwidth": {"peak": {"value": rate(within.parameters["beta"]), **figure}},
        "compute": {NAMES[dtype]: _throughput(found, dtype, figure) for dtype in NAMES},
        "launch": {"value": duration(found.of("gpu-launch")[0].median), **figure},
    }
    host = document["hosts"][0]
    host["devices"].append({"name": "gpu", "model": "gpu", "count": len(gpus)})
    host["links"].append(
        {
            "name": "bus",
            "kind": "pcie",
            "ends": ["gpu", "cpu"],
            "rate": {"value": rate(across.parameters["beta"]), **figure},
            "latency": {"value": duration(across.parameters["alpha"]), **figure},
        }
    )


def _throughput(found: Measurement, dtype: str, figure: dict[str, str]) -> dict[str, Any]:
    series = found.of("gpu-gemm", dtype=dtype)
    curve = fit.rate_curve([s.labels["flops"] for s in series], [s.median for s in series], rising=True)
    peak = max(value for _, value in curve.knots)
    points = [{"at": f"{int(at)} FLOP", "value": min(1.0, rounded(value / peak))} for at, value in curve.knots]
    return {"peak": {"value": flop_rate(peak), **figure}, "efficiency": {**figure, "points": points}}
