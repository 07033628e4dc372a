"""How many bytes a list of instructions moves, before it does."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from engines.superscaler.graph import BYTES
from engines.superscaler.program import Collective, Exchange

if TYPE_CHECKING:
    from collections.abc import Iterable

    from engines.superscaler.program import Instruction, Piece


def predicted(instructions: Iterable[Instruction]) -> tuple[int, int]:
    """(bytes sent, bytes received) by one rank in one step.

    Collectives as rings do them, in which a rank sends as much as it receives.
    """
    sent = received = 0
    for instruction in instructions:
        match instruction:
            case Collective():
                sent += instruction.received * BYTES[instruction.dtype]
                received += instruction.received * BYTES[instruction.dtype]
            case Exchange():
                sent += elements(instruction.sends) * BYTES[instruction.dtype]
                received += elements(instruction.receives) * BYTES[instruction.dtype]
    return sent, received


def elements(pieces: Iterable[Piece]) -> int:
    """Elements of some pieces together."""
    return sum(math.prod(end - begin for begin, end in piece.box) for piece in pieces)
