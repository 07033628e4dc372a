"""The ladder: levels one after another, as far as asked and as far as it makes sense."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from engines.superscaler.verify import bounds, equality, rendezvous, static
from engines.superscaler.verify.findings import Report

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

    from engines.superscaler.program import Instruction, Program
    from engines.superscaler.verify.findings import Finding


def verify(
    program: Program,
    level: int = 2,
    lists: Mapping[int, Sequence[Instruction]] | None = None,
    module: nn.Module | None = None,
    example: Sequence[Tensor] = (),
) -> Report:
    """Verify a program, or lists of instructions that may not be its own.

    Args:
        program: Gives the graph, the runs, where weights lie, and how many micro-batches there are.
        level: The highest one to run: 0 schema and bounds, 1 contents, 2 meetings, 3 numbers.
        lists: Instructions of every rank; by default the program's projections.
        module: What the graph was traced from; for level 3, which computes all of it in this process.
        example: One micro-batch for it.
    """
    if lists is None:
        from engines.superscaler.projection import project

        lists = {rank: project(program, rank) for rank in program.plan.devices}
    findings: list[Finding] = []
    seconds: dict[int, float] = {}
    notes: list[str] = []

    start = time.perf_counter()
    findings.extend(bounds.check(program, lists))
    seconds[0] = time.perf_counter() - start
    if level >= 1 and findings:
        notes.append("levels above L0 were not run: they need what L0 asks for")
    elif level >= 1:
        # Contents are followed in the order in which things happen, so the symbolic execution of level 2 comes first.
        start = time.perf_counter()
        meeting = rendezvous.simulate(lists)
        met = time.perf_counter() - start
        start = time.perf_counter()
        findings.extend(static.interpret(program, lists, meeting))
        seconds[1] = time.perf_counter() - start
        if level >= 2:
            findings.extend(meeting.findings)
            seconds[2] = met
        elif meeting.findings:
            notes.append("the lists do not meet (L2): what comes after that was not looked at")
    if level >= 3 and findings:
        notes.append("L3 was not run: lower levels found something")
    elif level >= 3 and module is None:
        notes.append("L3 was not run: it needs the module that the graph was traced from")
    elif level >= 3:
        start = time.perf_counter()
        findings.extend(equality.check(program, lists, module, example))
        seconds[3] = time.perf_counter() - start
    return Report(
        asked=level,
        findings=tuple(sorted(findings)),
        seconds=seconds,
        ranks=len(lists),
        instructions=sum(map(len, lists.values())),
        notes=tuple(notes),
    )
