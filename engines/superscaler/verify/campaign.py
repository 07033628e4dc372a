"""The score of the verifier: planted bugs that it catches, sound plans that it objects to."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engines.superscaler.verify import random_plans
from engines.superscaler.verify.mutations import KINDS, mutants
from engines.superscaler.verify.verification import verify

if TYPE_CHECKING:
    from collections.abc import Iterable

    from engines.superscaler.graph import Graph
    from engines.superscaler.program import Program


@dataclass
class Score:
    """Of a campaign."""

    plans: int = 0
    alarms: list[str] = field(default_factory=list)
    """Sound plans that were objected to: the first finding of each."""
    planted: Counter[str] = field(default_factory=Counter)
    """By class of bugs."""
    caught: dict[str, Counter[int]] = field(default_factory=dict)
    """By class, and by the lowest level that found something."""
    missed: list[str] = field(default_factory=list)
    """Class and place of bugs that were not caught."""
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether nothing was missed and nothing objected to."""
        return not self.alarms and not self.missed

    def render(self) -> str:
        """A table by class: planted, and caught by which level."""
        lines = [f"{'planted bug':44s} planted  caught   L0   L1   L2"]
        for kind in KINDS:
            levels = self.caught.get(kind.name, Counter())
            by = "".join(f"{levels[level]:5d}" for level in (0, 1, 2))
            lines.append(f"{kind.name:44s} {self.planted[kind.name]:7d} {levels.total():7d}{by}")
        total = sum(levels.total() for levels in self.caught.values())
        by = "".join(f"{sum(levels[level] for levels in self.caught.values()):5d}" for level in (0, 1, 2))
        lines.append(f"{'all':44s} {self.planted.total():7d} {total:7d}{by}")
        lines.append(f"{self.plans} sound plans, {len(self.alarms)} false alarms; {self.seconds:.1f} s")
        lines.extend(f"missed: {missed}" for missed in self.missed[:20])
        lines.extend(f"false alarm: {alarm}" for alarm in self.alarms[:20])
        return "\n".join(lines)


def campaign(programs: Iterable[tuple[str, Program]], most: int = 1, seed: int = 0) -> Score:
    """Verify sound programs, then each with every class of bugs planted.

    Args:
        programs: With names for messages.
        most: Bugs of a class in a program.
        seed: Of their places.
    """
    from engines.superscaler.projection import project

    score = Score()
    start = time.perf_counter()
    for name, program in programs:
        lists = {rank: project(program, rank) for rank in program.plan.devices}
        report = verify(program, 2, lists)
        score.plans += 1
        if not report.ok:
            score.alarms.append(f"{name}: {report.findings[0].render()}")
            continue
        for mutant in mutants(program, lists, seed, most):
            score.planted[mutant.kind] += 1
            level = verify(mutant.program, 2, mutant.lists).caught()
            if level is None:
                score.missed.append(f"{name}: {mutant.kind}: {mutant.where}")
            else:
                score.caught.setdefault(mutant.kind, Counter())[level] += 1
    score.seconds = time.perf_counter() - start
    return score


def over_random_plans(graph: Graph, plans: int, first: int = 0, most: int = 1) -> Score:
    """A campaign over random plans of a model; seeds `first` and so on."""
    programs = (
        (f"random plan {seed} of {graph.name}", random_plans.program(graph, seed))
        for seed in range(first, first + plans)
    )
    return campaign(programs, most)
