"""Level 2: do the ranks' lists meet? All ranks are executed symbolically with no buffering at all.

A collective happens when all members of its group have come to it. An exchange is posted as one unit, all its sends and
receives together, and is over for a rank once every peer it names has posted its own. Nothing is stored underway: if
this ends, any buffering does (brief on zero-buffer semantics; Tessel and Megatron-LM post the steady state of 1F1B so).

The order in which things happened is kept: the static analysis follows it.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Literal, NamedTuple

from engines.superscaler.program import Collective, Exchange
from engines.superscaler.verify.findings import Finding
from engines.superscaler.verify.values import size

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from engines.superscaler.program import Instruction, Piece

    Lists = Mapping[int, Sequence[Instruction]]


class Event(NamedTuple):
    """Something that happened, on one rank or (`meet`) on all members of a group at once."""

    kind: Literal["local", "meet", "post", "finish"]
    at: tuple[tuple[int, int], ...]
    """(rank, index of its instruction), in the group's order."""


class Meeting(NamedTuple):
    """Of a symbolic execution."""

    events: tuple[Event, ...]
    findings: tuple[Finding, ...]
    finished: bool
    """Whether every rank came to the end of its list."""


def simulate(lists: Lists) -> Meeting:
    """Execute all ranks until none can go on."""
    return _Simulation(lists).run()


class _Simulation:
    def __init__(self, lists: Lists) -> None:
        self.lists = lists
        self.position = dict.fromkeys(sorted(lists), 0)
        self.events: list[Event] = []
        self.findings: list[Finding] = []
        self.arrived: dict[frozenset[int], dict[int, Collective]] = {}
        self.posted: dict[int, dict[int, Exchange]] = {}
        """By tag and rank."""
        self.waiting: dict[int, list[int]] = {}
        """Ranks in an exchange, by tag."""

    def run(self) -> Meeting:
        ready = deque(self.position)
        while ready:
            ready.extend(self._go(ready.popleft()))
        stuck = [rank for rank, position in self.position.items() if position < len(self.lists[rank])]
        if stuck:
            self.findings.append(self._deadlock(stuck))
        return Meeting(tuple(self.events), tuple(sorted(set(self.findings))), not stuck)

    def _go(self, rank: int) -> list[int]:
        """Let a rank run until it has to wait; the ranks that can go on because of it."""
        own, position = self.lists[rank], self.position[rank]
        while position < len(own):
            step = own[position]
            self.position[rank] = position
            if isinstance(step, Collective):
                return self._arrive(rank, step)
            if isinstance(step, Exchange):
                return self._post(rank, step)
            self.events.append(Event("local", ((rank, position),)))
            position += 1
        self.position[rank] = position
        return []

    def _arrive(self, rank: int, step: Collective) -> list[int]:
        members = frozenset(step.group)
        here = self.arrived.setdefault(members, {})
        here[rank] = step
        if len(here) < len(members):
            return []
        del self.arrived[members]
        first = self.lists[step.group[0]][self.position[step.group[0]]]
        for other in sorted(members):
            self._compare(step.group[0], first, other, here[other])  # type: ignore[arg-type]
        self.events.append(Event("meet", tuple((member, self.position[member]) for member in here[min(here)].group)))
        for member in members:
            self.position[member] += 1
        return sorted(members)

    def _compare(self, one: int, first: Collective, rank: int, step: Collective) -> None:
        for name, mine, theirs in (
            ("kind", step.kind, first.kind),
            ("order of ranks", step.group, first.group),
            ("shape", step.shape, first.shape),
            ("dtype", step.dtype, first.dtype),
            ("reduction", step.reduction, first.reduction),
            ("dim", (step.dim, step.split), (first.dim, first.split)),
            ("tensor", _what(step), _what(first)),
        ):
            if mine != theirs:
                self._find(rank, f"calls {_named(step)} with {name} {mine}, rank {one} has {theirs}")

    def _post(self, rank: int, step: Exchange) -> list[int]:
        posted = self.posted.setdefault(step.tag, {})
        if rank in posted:
            self._find(rank, f"posts exchange {step.tag} for the second time")
            self.events.append(Event("post", ((rank, self.position[rank]),)))
            return self._finish(rank)
        posted[rank] = step
        self.events.append(Event("post", ((rank, self.position[rank]),)))
        mine = _peers(rank, step)
        for other in sorted(posted):
            # A message may be meant for who does not expect it, or be expected from who does not send it.
            if other != rank and (other in mine or rank in _peers(other, posted[other])):
                self._match(rank, step, other, posted[other])
                self._match(other, posted[other], rank, step)
        waiting = [*self.waiting.get(step.tag, ()), rank]
        over = [one for one in waiting if _peers(one, posted[one]) <= posted.keys()]
        self.waiting[step.tag] = [one for one in waiting if one not in over]
        return [again for one in over for again in self._finish(one)]

    def _finish(self, rank: int) -> list[int]:
        self.events.append(Event("finish", ((rank, self.position[rank]),)))
        self.position[rank] += 1
        return [rank]

    def _match(self, sender: int, sent: Exchange, receiver: int, got: Exchange) -> None:
        sends, receives = _between(sent.sends, receiver), _between(got.receives, sender)
        if len(sends) != len(receives):
            self._find(
                receiver,
                f"expects {len(receives)} pieces of rank {sender} in exchange {got.tag}, which sends {len(sends)}",
            )
            return
        for number, (one, other) in enumerate(zip(sends, receives, strict=True)):
            if size(one.box) != size(other.box):
                self._find(
                    receiver,
                    f"expects piece {number} of rank {sender} in exchange {got.tag} to be of {size(other.box)},"
                    f" it is of {size(one.box)}",
                )
        if sends and sent.dtype != got.dtype:
            self._find(
                receiver, f"expects {got.dtype} of rank {sender} in exchange {got.tag}, which sends {sent.dtype}"
            )

    def _find(self, rank: int, message: str) -> None:
        self.findings.append(Finding(2, rank, self.position[rank], "I6", message))

    def _deadlock(self, stuck: Sequence[int]) -> Finding:
        """The circle of ranks that wait for one another, or the one that waits for a rank that has ended."""
        path: list[int] = [stuck[0]]
        while True:
            following = self._awaited(path[-1])[0]
            if following in path:
                circle = path[path.index(following) :]
                break
            path.append(following)
            if self.position.get(following, 0) >= len(self.lists.get(following, ())):
                circle = path
                break
        said = "; ".join(self._wait(rank) for rank in circle)
        rank = circle[0]
        return Finding(2, rank, self.position[rank], "I5", f"no rank of {sorted(stuck)} can go on: {said}")

    def _awaited(self, rank: int) -> list[int]:
        step = self.lists[rank][self.position[rank]]
        if isinstance(step, Exchange):
            posted = self.posted[step.tag]
            return sorted(peer for peer in _peers(rank, step) if peer not in posted)
        here = self.arrived[frozenset(step.group)]  # type: ignore[union-attr]
        return [member for member in step.group if member not in here]  # type: ignore[union-attr]

    def _wait(self, rank: int) -> str:
        position = self.position.get(rank, 0)
        if rank not in self.lists:
            return f"there is no rank {rank}"
        if position >= len(self.lists[rank]):
            return f"rank {rank} has come to its end"
        awaited = ", ".join(map(str, self._awaited(rank)))
        return f"rank {rank} waits in instruction {position} ({_named(self.lists[rank][position])}) for rank {awaited}"


def _what(step: Collective) -> tuple[str, str, int]:
    return step.source.tensor, step.source.kind, step.source.micro_batch


def _peers(rank: int, step: Exchange) -> set[int]:
    return {piece.peer for piece in (*step.sends, *step.receives)} - {rank}


def _between(pieces: Sequence[Piece], peer: int) -> list[Piece]:
    return [piece for piece in pieces if piece.peer == peer]


def _named(step: Instruction) -> str:
    if isinstance(step, Collective):
        return f"{step.kind} of {step.source.kind} {step.source.tensor!r} among {list(step.group)}"
    if isinstance(step, Exchange):
        buffer = step.source or step.target
        return f"exchange {step.tag}" + (f" of {buffer.kind} {buffer.tensor!r}" if buffer else "")
    return type(step).__name__
