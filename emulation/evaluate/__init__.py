"""Evaluators: a workload graph and a profile in, times out.

`simulate` is the one entry. It has two evaluators, which agree to the picosecond: a sweep in one pass, where nobody has
to share (`sweep`), and SimPy where they do (`events`). Programs over a mesh of ranks are folded first (`folding`), or
swept with all ranks as the axis of an array (`ranks`). Importing this package costs nothing; SimPy, NumPy and networkx
are loaded by the first call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, cast

if TYPE_CHECKING:
    from collections.abc import Sequence

    from emulation.evaluate.result import Result
    from emulation.faults import Fault
    from emulation.graph import Workload
    from emulation.profile import Profile
    from emulation.program import Program
    from emulation.scenario import Scenario
    from emulation.topology import Topology

__all__ = ["Evaluator", "Result", "simulate"]


Evaluator = Literal["auto", "sweep", "events"]


def simulate(
    workload: Workload | Program,
    profile: Profile,
    *,
    seed: int = 0,
    evaluator: Evaluator = "auto",
    faults: Sequence[Fault] = (),
) -> Result:
    """Evaluate a workload, or a program over a mesh of ranks, on a cluster.

    Args:
        workload: what is done; its devices are those of the profile (`host0/gpu3`, `host1/cpu`). A program is folded
            first: ranks that cannot be told apart are evaluated once.
        profile: the cluster.
        seed: of random draws; only faults draw any, so without them results are the same for every seed.
        evaluator: `sweep` takes every link to be idle, in one pass, and refuses if it was not; `events` shares links;
            `auto` sweeps, and falls back on the events where links were shared. Where both can, they agree to the
            picosecond.
        faults: what goes wrong meanwhile (see `emulation.faults`); how the run ends is part of the result. What holds
            throughout splits only the classes of the ranks it touches; a program with jitter, or with faults that come
            and go, is expanded rank by rank.

    Returns:
        Times, traffic, memory, the critical path, and the claimed band; equal on every run, bit for bit.

    Raises:
        WorkloadError: the workload is wrong in itself or for this cluster, deadlocks, or is too large; or `sweep` was
            asked for, and what things take changes with time.
        Contended: `sweep` was asked for, and links were shared.
        FaultError: a fault names what the cluster does not have.
        Stalled: something waits for a link without capacity.
    """
    from emulation.evaluate.disturbed import Disturbed
    from emulation.evaluate.events import Run
    from emulation.evaluate.folding import Folded
    from emulation.evaluate.groups import Pricing
    from emulation.evaluate.outcome import recover
    from emulation.evaluate.result import Result
    from emulation.evaluate.room import Contended
    from emulation.evaluate.sweep import Sweep
    from emulation.evaluate.tasks import Tasks
    from emulation.graph import Workload, WorkloadError
    from emulation.scenario import Scenario
    from emulation.topology import Topology

    topology = Topology(profile, seed)
    scenario = Scenario(faults, topology, seed) if faults else None
    folded = None
    if not isinstance(workload, Workload) and _folds(workload, topology, scenario):
        # A kernel that communication slows down has to be a node of its own.
        slowed = any(topology.profile.models[name].overlap for name in topology.profile.models)
        folded = Folded(workload, topology, Pricing(workload, topology, scenario), fuse=not slowed)
    flat = workload if isinstance(workload, Workload) else None if folded else workload.expand()
    tasks = folded.tasks if folded else Tasks(cast("Workload", flat), topology, scenario=scenario)
    if evaluator == "sweep" and not tasks.is_static:
        raise WorkloadError(
            "what this takes changes while it runs (faults, kernels beside communication): use the events"
        )
    if evaluator != "events" and tasks.is_static:
        sweep = Sweep(tasks)
        try:
            sweep.go()
        except Contended:
            if evaluator == "sweep":
                raise
        else:
            recover(sweep)
            return Result(sweep, folded)
    run = Run(tasks) if tasks.is_static else Disturbed(tasks)
    run.go()
    recover(run)
    return Result(run, folded)


def _folds(program: Program, topology: Topology, scenario: Scenario | None) -> bool:
    """Whether ranks can be told apart by their hardware and neighbours alone.

    Not where kernels of several ranks share a host's cores, nor where each draws its own luck or things change in time.
    """
    on_cores = any(topology.model(device).kind == "cpu" for device in program.mesh.devices)
    return not on_cores and (scenario is None or scenario.is_even)


def __getattr__(name: str) -> Any:
    if name == "Result":
        from emulation.evaluate.result import Result

        return Result
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
