"""What every rank sends and receives in a step, to the byte.

Collectives count as ring algorithms move them (`program.Collective.received`): with n members a rank sends as much as
it receives. Exchanges and transfers count piece by piece. The runtime counts the same of what it does carry out.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engines.superscaler.graph import BYTES
from engines.superscaler.precision import Precision
from engines.superscaler.program import Move, Sections, Transfer
from engines.superscaler.redistribution.steps import ring
from engines.superscaler.sizes import Sizes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engines.superscaler.program import Action, Program


@dataclass(frozen=True)
class Traffic:
    """Bytes of one rank, by kind of communication (`all-reduce`, ..., `exchange`, `transfer`)."""

    received: Counter[str] = field(default_factory=Counter)
    sent: Counter[str] = field(default_factory=Counter)


def traffic(program: Program) -> dict[int, Traffic]:
    """Bytes that every device of the plan receives and sends in one step, in the graph's dtypes."""
    found = {device: Traffic() for device in program.plan.devices}
    sizes = Sizes(program, Precision())
    for action, times in _counted(program):
        width = BYTES[action.dtype] * times
        if isinstance(action, Transfer) or action.kind == "exchange":
            kind = action.kind if isinstance(action, Move) else "transfer"
            for (source, target), numbers in sizes.messages(action).items():
                found[source].sent[kind] += numbers * width
                found[target].received[kind] += numbers * width
            continue
        members = math.prod(action.mesh.shape[axis] for axis in action.axes)
        nbytes = ring(action.kind, members, sizes.numbers(action.before, action.shape)) * width
        for device in action.mesh.devices if nbytes else ():
            found[device].received[action.kind] += nbytes
            found[device].sent[action.kind] += nbytes
    return found


def _counted(program: Program) -> Iterator[tuple[Move | Transfer, int]]:
    """Every communication, and how often it is done."""

    def those(actions: tuple[Action, ...]) -> list[Move | Transfer]:
        return [action for action in actions if isinstance(action, Move | Transfer)]

    sections = program.sections
    if isinstance(sections, Sections):
        often = Counter(sections.which)
        for number, template in enumerate(sections.templates):
            yield from ((action, often[number]) for action in those(template))
        return
    for section in sections:
        yield from ((action, 1) for action in those(section.actions))
