"""Which all-reduces of a rank can travel as one: what a message costs however small it is, is then paid once.

The instruction list stays as it is, and so does what is counted of it: this is how it is carried out. All members of a
group find the same buckets, because what decides is the same on all of them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from engines.superscaler.graph import BYTES
from engines.superscaler.program import Collective, Local

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engines.superscaler.program import Buffer, Instruction

LARGEST = 4 * 2**20
"""Bytes of a bucket: by so much more a rank may hold than its list says, for a bucket's sources are all there while it
is filled. What is larger than this by itself gains nothing from company."""


def buckets(instructions: Sequence[Instruction], largest: int = LARGEST) -> dict[int, tuple[Collective, ...]]:
    """Neighbouring all-reduces of one group, reduction and dtype, with nothing but `free` between them.

    Args:
        instructions: Of one rank.
        largest: Bytes that one bucket may have.

    Returns:
        Number of an instruction that is in a bucket -> all of the bucket if it is the first of it, else nothing.
    """
    found: dict[int, tuple[Collective, ...]] = {}
    members: dict[int, Collective] = {}
    touched: set[Buffer] = set()
    size = 0

    def close() -> None:
        nonlocal size
        if len(members) > 1:
            found.update(dict.fromkeys(members, ()))
            found[min(members)] = tuple(members.values())
        members.clear()
        touched.clear()
        size = 0

    for number, instruction in enumerate(instructions):
        if isinstance(instruction, Local) and instruction.kind == "free":
            touched.update(instruction.sources, instruction.targets)
            continue
        if not isinstance(instruction, Collective) or instruction.kind != "all-reduce":
            close()
            continue
        nbytes = math.prod(instruction.shape) * BYTES[instruction.dtype]
        first = next(iter(members.values()), instruction)
        # What an earlier member makes, or a `free` between them takes, is another value when this one's turn comes.
        apart = instruction.source in touched or instruction.target in touched
        if apart or size + nbytes > largest or _kind(instruction) != _kind(first):
            close()
        members[number] = instruction
        touched.add(instruction.target)
        size += nbytes
    close()
    return found


def _kind(called: Collective) -> tuple[object, ...]:
    return called.group, called.reduction, called.dtype
