"""What steps of plans take on real links, beside what was predicted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

from emulation.evaluate import simulate
from emulation.graph import Workload
from emulation.program import part_node
from engines.superscaler import emulate
from engines.superscaler.emulate.kernels import Kernels
from engines.superscaler.links.jobs import Step, measure
from engines.superscaler.precision import Precision
from engines.superscaler.program import RunPart
from engines.superscaler.projection import project

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from emulation.profile import Profile
    from engines.superscaler.links.network import Shape
    from engines.superscaler.program import Program


@dataclass(frozen=True)
class Score:
    """Predicted and measured seconds of a step, by the plan's name."""

    predicted: Mapping[str, float]
    measured: Mapping[str, float]

    @property
    def errors(self) -> dict[str, float]:
        """Signed, relative to what was measured."""
        return {name: self.predicted[name] / measured - 1 for name, measured in self.measured.items()}

    @property
    def mape(self) -> float:
        """Mean absolute relative error."""
        return math.fsum(map(abs, self.errors.values())) / len(self.measured)

    @property
    def tau(self) -> float:
        """Kendall's tau-a: how far the two orders of the plans agree, from -1 to 1."""
        pairs = list(combinations(sorted(self.measured), 2))
        signs = ((self.predicted[a] - self.predicted[b]) * (self.measured[a] - self.measured[b]) for a, b in pairs)
        return sum((sign > 0) - (sign < 0) for sign in signs) / len(pairs)


def score(programs: Mapping[str, Program], profile: Profile, ranks: int, shape: Shape) -> Score:
    """Predict every program's step on the profile and time it on a network of that shape.

    Raises:
        HarnessError: no network can be made here, or a rank failed.
        PlanError: a program is for more ranks.
    """
    predicted = {name: emulate.seconds(program, profile).seconds for name, program in programs.items()}
    taken = measure(ranks, shape, [step(program, profile) for program in programs.values()])
    return Score(predicted, dict(zip(programs, taken, strict=True)))


def step(program: Program, profile: Profile) -> Step:
    """What the ranks are to do, computing for as long as the profile says."""
    lists = (project(program, rank) for rank in program.plan.devices)
    passes = {(i.run, i.what) for each in lists for i in each if isinstance(i, RunPart)}
    kernels = Kernels(program, Precision())
    return Step(program, tuple((key, _computing(kernels, *key, profile)) for key in sorted(passes)))


def _computing(kernels: Kernels, run: int, what: str, profile: Profile) -> float:
    """Seconds that the profile says a pass of a run takes."""
    work = Workload()
    for part in kernels.of(run, what):
        work.append(part_node(part, ("host0/cpu",), "main"), ())
    return simulate(work, profile).seconds if work.nodes else 0.0


def table(found: Score) -> Sequence[tuple[str, float, float, float]]:
    """(plan, measured seconds, predicted seconds, relative error), fastest first."""
    order = sorted(found.measured, key=lambda name: found.measured[name])
    return [(name, found.measured[name], found.predicted[name], found.errors[name]) for name in order]
