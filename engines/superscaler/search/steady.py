"""The time of a step of many micro-batches, from steps of few.

Once a pipeline has filled, every further micro-batch adds the same time, until it empties as it would after fewer. So
two short steps tell a long one: T(M) = T(n) + (M - n) * (T(n) - T(n - 1)) for every n from where the pipeline is full.
The first micro-batches of an order, without the others, are in the order that a step of so many has (1F1B and
zero-bubble: each device works on micro-batches as they come).

It is exact where nobody shares links (Baccelli, Cohen, Olsder, Quadrat: Synchronization and Linearity, 1992) and the
pipeline has settled after `SETTLED` micro-batches more than it holds; tests hold it to the whole step. Where stages
lie on devices of one another, or a GPipe is full, messages that share links make it some tenths of a percent.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from engines.superscaler.order.pipeline import Pipeline
from engines.superscaler.order.timeline import in_flight
from engines.superscaler.program import Sections

if TYPE_CHECKING:
    from collections.abc import Callable

    from engines.superscaler.graph import Graph
    from engines.superscaler.plan import Plan
    from engines.superscaler.program import Program

SETTLED = 3
"""Micro-batches after which a full pipeline goes on as it did."""


def enough(graph: Graph, plan: Plan) -> int:
    """Micro-batches that fill a plan's pipeline and let it settle; at most all of them."""
    filled = max(in_flight(Pipeline.planned(graph, plan), plan.order).values(), default=1)
    filled = min(filled, len(plan.stages))  # a GPipe keeps all, but is full after as many as it has stages
    return min(filled + SETTLED, plan.micro_batches)


def shorter(program: Program, micro_batches: int) -> Program:
    """The first few micro-batches of a program, and its end."""
    if micro_batches == program.plan.micro_batches:
        return program
    order = tuple(block for block in program.plan.order if block.micro_batch < micro_batches)
    plan = replace(program.plan, micro_batches=micro_batches, order=order)
    sections = program.sections
    if isinstance(sections, Sections):
        own = [n for n, block in enumerate(sections.blocks) if block is None or block.micro_batch < micro_batches]
        blocks, which = (tuple(of[n] for n in own) for of in (sections.blocks, sections.which))
        short: Sections | tuple[object, ...] = Sections(blocks, which, sections.templates)
    else:
        short = tuple(one for one in sections if one.block is None or one.block.micro_batch < micro_batches)
    return replace(program, plan=plan, sections=short, losses=program.losses[:micro_batches])


def keeps_as_much(program: Program, other: Program) -> bool:
    """Whether each stage has as many micro-batches in flight in one as in the other, so that devices hold as much.

    (But for the losses of the micro-batches, a number each.)
    """
    one, two = (in_flight(Pipeline.planned(p.graph, p.plan), p.plan.order) for p in (program, other))
    return one == two


def extrapolated(program: Program, short: int, timed: Callable[[Program], float]) -> float:
    """Seconds of a step, from steps of `short` micro-batches and of one less; its own if it has no more than that."""
    more = timed(shorter(program, short))
    if short == program.plan.micro_batches:
        return more
    return more + (program.plan.micro_batches - short) * (more - timed(shorter(program, short - 1)))
