"""What a program would take on a cluster: its actions, as the emulator's workload.

`workload` lowers the same actions that the runtime carries out and the verifier checks; `seconds` evaluates them;
`traffic` says what every rank sends and receives, to the byte.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from emulation import layout
from engines.superscaler.cluster import model_of
from engines.superscaler.emulate.box import box
from engines.superscaler.emulate.kernels import Kernels
from engines.superscaler.emulate.lowering import Lowering, Told
from engines.superscaler.emulate.targets import STREAM, OnBox, OnRanks
from engines.superscaler.emulate.traffic import traffic
from engines.superscaler.precision import Precision
from engines.superscaler.program import Move, Sections
from engines.superscaler.sizes import Sizes
from harness.api import PlanError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from emulation.evaluate import Result
    from emulation.graph import Workload
    from emulation.profile import Profile
    from emulation.program import Program as Folded
    from engines.superscaler.layout import Mesh
    from engines.superscaler.program import Program

__all__ = ["Estimate", "Lowered", "Told", "estimate", "seconds", "traffic", "workload"]

Form = Literal["auto", "ranks", "folded"]
EXACT = 256
"""Devices up to which every message goes from whom to whom the plan says; see `targets.OnBox`."""


@dataclass(frozen=True)
class Lowered:
    """A program as a workload, with what its nodes mean."""

    work: Workload | Folded
    """A node for every rank; or items over a box of ranks, which the emulator folds."""
    devices: Mapping[int, str]
    """Device of the plan -> its name on the cluster."""
    told: tuple[Told, ...]
    """For every node of a `Workload`, or item of a `Program`, what it is in the plan's words."""


@dataclass(frozen=True)
class Estimate:
    """What a step takes."""

    seconds: float
    busy: Mapping[int, float]
    """Device -> seconds in which it computes or takes part in a collective; of a folded program, representatives."""
    stands_for: Mapping[int, int]
    """Of each of these devices, how many do just the same, itself included."""
    result: Result

    @property
    def bubble(self) -> float:
        """Share of the step in which a device does nothing, averaged over all devices."""
        whole = self.seconds * sum(self.stands_for.values())
        return 1 - sum(spent * self.stands_for[device] for device, spent in self.busy.items()) / whole if whole else 0.0


def workload(program: Program, profile: Profile, *, precision: Precision | None = None, form: Form = "auto") -> Lowered:
    """The workload of one step.

    Args:
        program: what is done.
        profile: on what; device n of the plan is the n-th accelerator (or processor, where there is none).
        precision: in which numbers; by default those of the graph.
        form: `ranks` for a node per rank, `folded` for items over a box of ranks; `auto` folds where all meshes are
            slices of one box and the ranks are accelerators, and spreads messages evenly on more than `EXACT` of them.

    Raises:
        PlanError: the cluster has too few devices; or `folded` was asked for, and the meshes are not slices of one box.
    """
    precision = precision or Precision()
    there = layout.devices(profile)
    there = there or layout.processors(profile)
    needed = max(program.plan.devices) + 1
    if needed > len(there):
        raise PlanError(
            f"the plan is for {needed:,} devices; profile {profile.name!r} has {len(there):,}: plan for fewer, or name"
            " a larger profile"
        )
    devices = {device: there[device] for device in program.plan.devices}
    # Processes share the cores of their host, so that the emulator would take a program apart again.
    folds = form == "folded" or (form == "auto" and all(model_of(profile, n).kind == "gpu" for n in devices.values()))
    made = box(_meshes(program)) if folds else None
    if made is None and form == "folded":
        shapes = sorted({" x ".join(map(str, mesh.shape)) for mesh in _meshes(program)})
        raise PlanError(f"meshes of {', '.join(shapes)} are not slices of one box: use the form `ranks`")
    even = form == "auto" and len(devices) > EXACT
    target = OnBox(made, devices, program.plan.name, even=even) if made else OnRanks(devices, program.plan.name)
    lowering = Lowering(program, target, Kernels(program, precision), Sizes(program, precision), precision)
    lowering.lower()
    told = tuple(told for handle, told in enumerate(lowering.told) for _ in target.nodes(handle))
    return Lowered(target.work, devices, told)


def seconds(program: Program, profile: Profile, *, precision: Precision | None = None) -> Estimate:
    """How long a step takes, and what each device does meanwhile.

    Raises:
        PlanError: the cluster has too few devices.
        WorkloadError: the profile lacks a figure, or a way to do some collective.
    """
    from emulation.evaluate import simulate

    lowered = workload(program, profile, precision=precision)
    return estimate(lowered, simulate(lowered.work, profile))


def estimate(lowered: Lowered, result: Result) -> Estimate:
    """The same, of a workload that was evaluated already."""
    spent = result.busy(STREAM)
    found = {device: name for device, name in lowered.devices.items() if not result.fold or name in result.fold}
    return Estimate(
        result.seconds,
        {device: spent.get(name, 0.0) for device, name in found.items()},
        {device: result.fold.get(name, 1) for device, name in found.items()},
        result,
    )


def _meshes(program: Program) -> Iterator[Mesh]:
    for stage in program.plan.stages:
        yield stage.mesh
    for run in program.runs:
        yield run.mesh
    sections = program.sections
    lists = sections.templates if isinstance(sections, Sections) else (section.actions for section in sections)
    for actions in lists:
        for action in actions:
            if isinstance(action, Move):
                yield action.mesh
