"""Evaluators: a workload graph and a profile in, times out.

`simulate` is the one entry. It has two evaluators, which agree to the picosecond: a sweep in one pass, where nobody has
to share (`sweep`), and SimPy where they do (`events`). Programs over a mesh of ranks are folded first (`folding`), or
swept with all ranks as the axis of an array (`ranks`). Importing this package costs nothing; SimPy, NumPy and networkx
are loaded by the first call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, cast

if TYPE_CHECKING:
    from emulation.evaluate.result import Result
    from emulation.graph import Workload
    from emulation.profile import Profile
    from emulation.program import Program

__all__ = ["Evaluator", "Result", "simulate"]


Evaluator = Literal["auto", "sweep", "events"]


def simulate(workload: Workload | Program, profile: Profile, *, seed: int = 0, evaluator: Evaluator = "auto") -> Result:
    """Evaluate a workload, or a program over a mesh of ranks, on a cluster.

    Args:
        workload: what is done; its devices are those of the profile (`host0/gpu3`, `host1/cpu`). A program is folded
            first: ranks that cannot be told apart are evaluated once.
        profile: the cluster.
        seed: of random draws. No model of this version draws any, so results are the same for every seed.
        evaluator: `sweep` takes every link to be idle, in one pass, and refuses if it was not; `events` shares links;
            `auto` sweeps, and falls back on the events where links were shared. Where both can, they agree to the
            picosecond.

    Returns:
        Times, traffic, memory, the critical path, and the claimed band; equal on every run, bit for bit.

    Raises:
        WorkloadError: the workload is wrong in itself or for this cluster, deadlocks, or is too large.
        Contended: `sweep` was asked for, and links were shared.
        Stalled: something waits for a link without capacity.
    """
    from emulation.evaluate.events import Run
    from emulation.evaluate.folding import Folded
    from emulation.evaluate.result import Result
    from emulation.evaluate.room import Contended
    from emulation.evaluate.sweep import Sweep
    from emulation.evaluate.tasks import Tasks
    from emulation.graph import Workload
    from emulation.topology import Topology

    topology = Topology(profile, seed)
    folded = None if isinstance(workload, Workload) else Folded(workload, topology)
    tasks = folded.tasks if folded else Tasks(cast("Workload", workload), topology)
    if evaluator != "events":
        sweep = Sweep(tasks)
        try:
            sweep.go()
        except Contended:
            if evaluator == "sweep":
                raise
        else:
            return Result(sweep, folded)
    run = Run(tasks)
    run.go()
    return Result(run, folded)


def __getattr__(name: str) -> Any:
    if name == "Result":
        from emulation.evaluate.result import Result

        return Result
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
