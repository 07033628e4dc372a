"""Evaluators: a workload graph and a profile in, times out.

`simulate` is the one entry. Today it has one evaluator, driven by events (`events`); importing this package costs
nothing, SimPy and networkx are loaded by the first call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emulation.evaluate.result import Result
    from emulation.graph import Workload
    from emulation.profile import Profile

__all__ = ["Result", "simulate"]


def simulate(workload: Workload, profile: Profile, *, seed: int = 0) -> Result:
    """Evaluate a workload on a cluster.

    Args:
        workload: what is done; its devices are those of the profile (`host0/gpu3`, `host1/cpu`).
        profile: the cluster.
        seed: of random draws. No model of this version draws any, so results are the same for every seed.

    Returns:
        Times, traffic, memory, the critical path, and the claimed band; equal on every run, bit for bit.

    Raises:
        WorkloadError: the workload is wrong in itself or for this cluster, deadlocks, or is too large.
        Stalled: something waits for a link without capacity.
    """
    from emulation.evaluate.events import Run
    from emulation.evaluate.result import Result
    from emulation.evaluate.tasks import Tasks
    from emulation.topology import Topology

    del seed
    run = Run(Tasks(workload, Topology(profile)))
    run.go()
    return Result(run)


def __getattr__(name: str) -> Any:
    if name == "Result":
        from emulation.evaluate.result import Result

        return Result
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
