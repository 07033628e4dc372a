"""All ranks of a program in one process.

Messages are rendezvous: a rank is past a communication only when its peers have come to theirs, so a list that gets to
its end here gets to its end with any buffering. The result does not depend on who is advanced first; the order in
which instructions ended is kept.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engines.superscaler.graph import BYTES
from engines.superscaler.program import Collective, Exchange
from engines.superscaler.redistribution.steps import ring
from engines.superscaler.runtime.communication import collected, exchanged, sizes, slices
from engines.superscaler.runtime.interpreter import describe
from harness.api import HarnessError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

    from engines.superscaler.runtime.interpreter import Rank


class Deadlock(HarnessError):
    """Ranks wait for one another for ever."""


class Mismatch(HarnessError):
    """Two ends of one communication disagree."""


@dataclass
class Traffic:
    """What went over the wire, in bytes of the dtypes that the program says; by rank."""

    sent: Counter[int] = field(default_factory=Counter)
    received: Counter[int] = field(default_factory=Counter)


class Lockstep:
    """Drives some ranks."""

    def __init__(self, ranks: Mapping[int, Rank]) -> None:
        self._ranks = dict(sorted(ranks.items()))
        self.traffic = Traffic()
        self.order: list[tuple[int, int]] = []
        """(rank, number of its instruction) of every communication, as they ended."""
        self._waiting: dict[int, Collective | Exchange] = {}
        self._messages: dict[int, set[tuple[int, int]]] = {}
        """Of a rank waiting in an exchange: the (source, destination) of messages that are not through."""
        self._arrived: dict[int, dict[int, list[Tensor]]] = {}
        """Of a rank waiting in an exchange: the pieces that each peer has sent."""

    def step(self, batch: Sequence[Mapping[str, Tensor]]) -> None:
        """One step of all ranks.

        Raises:
            Deadlock: some wait for what never comes; the message says who waits where, for whom.
            Mismatch: members of a group call different collectives, or a message is not as large as its place.
        """
        running = {number: rank.step(batch) for number, rank in self._ranks.items()}
        ready = list(running)
        while ready:
            for number in ready:
                self._advance(number, running)
            ready = self._communicate()
        if self._waiting:
            raise Deadlock("ranks wait for one another for ever:\n" + "\n".join(self._complaints()))
        self._messages.clear()
        self._arrived.clear()

    def _advance(self, number: int, running: dict[int, Iterator[Collective | Exchange]]) -> None:
        instruction = next(running[number], None)
        if instruction is None:
            del running[number]
            return
        self._waiting[number] = instruction
        if isinstance(instruction, Exchange):
            out = {(number, piece.peer) for piece in instruction.sends if piece.peer != number}
            self._messages[number] = out | {(p.peer, number) for p in instruction.receives if p.peer != number}
            self._arrived[number] = {}

    def _communicate(self) -> list[int]:
        """Do what can be done; the ranks that are past it."""
        past: list[int] = []
        for number in list(self._waiting):
            instruction = self._waiting.get(number)
            if isinstance(instruction, Collective) and number == min(instruction.group, default=number):
                past += self._collective(instruction)
            elif isinstance(instruction, Exchange):
                for source, destination in sorted(self._messages[number]):
                    if source == number:
                        self._message(source, destination, instruction.tag)
        for number, instruction in list(self._waiting.items()):
            if isinstance(instruction, Exchange) and not self._messages[number]:
                rank = self._ranks[number]
                if instruction.target is not None:
                    own = None if instruction.source is None else rank.read(instruction.source)
                    rank.values[instruction.target] = exchanged(rank, instruction, own, self._arrived[number])
                self._end(number)
                past.append(number)
        return sorted(past)

    # --- collectives -----------------------------------------------------------------------------------------------

    def _collective(self, called: Collective) -> list[int]:
        calls = {member: self._waiting.get(member) for member in called.group}
        if not all(isinstance(c, Collective) and c.group == called.group for c in calls.values()):
            return []
        parts = []
        for member, call in calls.items():
            if (call.kind, call.dim, call.split, call.reduction) != (
                called.kind,
                called.dim,
                called.split,
                called.reduction,
            ):
                raise Mismatch(
                    f"ranks {called.group[0]} and {member} are to do one collective, but call {_call(called)} and "
                    f"{_call(call)}"
                )
            parts.append(self._ranks[member].read(call.source))
        if len({part.shape for part in parts}) > 1:
            shapes = ", ".join(f"{tuple(p.shape)} of rank {m}" for m, p in zip(called.group, parts, strict=True))
            raise Mismatch(f"{_call(called)}: the parts differ in shape: {shapes}")
        moved = ring(called.kind, len(parts), parts[0].numel()) * BYTES[called.dtype]
        for member, value in zip(called.group, collected(called, parts), strict=True):
            self._ranks[member].values[calls[member].target] = value
            self.traffic.sent[member] += moved
            self.traffic.received[member] += moved
            self._end(member)
        return list(called.group)

    # --- exchanges -------------------------------------------------------------------------------------------------

    def _message(self, source: int, destination: int, tag: int) -> None:
        """Send all pieces from one rank to another, if both are at the exchange."""
        sender, receiver = self._waiting.get(source), self._waiting.get(destination)
        if not (isinstance(sender, Exchange) and isinstance(receiver, Exchange) and sender.tag == receiver.tag == tag):
            return
        sent = [piece for piece in sender.sends if piece.peer == destination]
        taken = [piece for piece in receiver.receives if piece.peer == source]
        given, expected = [sizes(piece) for piece in sent], [sizes(piece) for piece in taken]
        if given != expected:
            raise Mismatch(
                f"exchange {tag}: rank {source} sends pieces of {given} to rank {destination}, which expects {expected}"
            )
        value = self._ranks[source].read(sender.source)
        pieces = [value[slices(piece.box)] for piece in sent]
        self._arrived[destination][source] = pieces
        elements = sum(piece.numel() for piece in pieces)
        self.traffic.sent[source] += elements * BYTES[sender.dtype]
        self.traffic.received[destination] += elements * BYTES[receiver.dtype]
        self._messages[source].discard((source, destination))
        self._messages[destination].discard((source, destination))

    def _end(self, number: int) -> None:
        del self._waiting[number]
        self.order.append((number, self._ranks[number].at))

    def _complaints(self) -> list[str]:
        lines = []
        for number, instruction in sorted(self._waiting.items()):
            if isinstance(instruction, Collective):
                here = {
                    m for m, c in self._waiting.items() if isinstance(c, Collective) and c.group == instruction.group
                }
                missing = [member for member in instruction.group if member not in here]
                what = f"in {_call(instruction)} for ranks {missing}"
            else:
                peers = sorted({rank for message in self._messages[number] for rank in message} - {number})
                named = instruction.target or instruction.source
                what = f"in exchange {instruction.tag} of {describe(named) if named else 'nothing'} for ranks {peers}"
            lines.append(f"  rank {number}, instruction {self._ranks[number].at}, waits {what}")
        return lines


def _call(called: Collective) -> str:
    along = "" if called.kind == "all-reduce" else f" along dim {called.dim}"
    return f"{called.kind} ({called.reduction}){along} of {describe(called.source)} in group {called.group}"
