"""Why this plan: what its runners-up would take, and what their time goes into."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from emulation.units import render

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from engines.superscaler.search.searching import Found

SHARES = {
    "compute": "computing",
    "collective": "collectives",
    "p2p": "messages between stages",
    "host": "the host",
    "memory": "copies",
}
"""Families of the emulator's models, in words."""


@dataclass(frozen=True)
class Candidate:
    """A plan that was considered."""

    name: str
    seconds: float = 0.0
    """Of a step, emulated; of no meaning with a `problem`."""
    memory: int = 0
    """Bytes of the fullest device."""
    shares: Mapping[str, float] = field(default_factory=dict)
    """Of the critical path, by family (`Result.critical_path.shares`)."""
    bubble: float = 0.0
    problem: str = ""
    """Why it cannot be carried out."""


def why(winner: Candidate, others: Sequence[Candidate]) -> str:
    """Sentences: the winner, then every other one, nearest first, with what costs it the difference."""
    lines = [
        f"{winner.name}: {render(winner.seconds, 's')} a step, {render(winner.memory, 'B')} on the fullest device."
    ]
    if winner.shares:
        lines.append(f"  What it waits for: {_shares(winner)}; devices are idle {winner.bubble:.0%} of the time.")
    for other in sorted((one for one in others if not one.problem), key=lambda one: (one.seconds, one.name)):
        slower = other.seconds / winner.seconds - 1
        how = "as fast" if abs(slower) < 0.0005 else f"{abs(slower):.1%} {'slower' if slower > 0 else 'faster'}"
        memory = other.memory - winner.memory
        room = f", {render(abs(memory), 'B')} {'more' if memory > 0 else 'less'} memory" if memory else ""
        lines.append(f"{other.name}: {render(other.seconds, 's')}, {how}{room}{_difference(winner, other)}.")
    lines += [
        f"{one.name}: cannot be done: {one.problem}" for one in sorted(others, key=lambda o: o.name) if one.problem
    ]
    return "\n".join(lines)


def why_found(found: Found, *, shares: Mapping[str, float] | None = None, bubble: float = 0.0) -> str:
    """The same of what a search found; `shares` and `bubble` are those of the winner's emulation."""
    winner = Candidate(found.plan.name or "this plan", found.seconds, max(found.memory), shares or {}, bubble)
    others = [Candidate(other.name, other.seconds, other.memory) for other in found.runners_up]
    return why(winner, [*others, *(Candidate(name, problem=reason) for name, reason in found.refused)])


def _shares(one: Candidate) -> str:
    ordered = sorted(one.shares.items(), key=lambda pair: (-pair[1], pair[0]))
    return ", ".join(f"{SHARES.get(family, family)} {share:.0%}" for family, share in ordered if share >= 0.005)


def _difference(winner: Candidate, other: Candidate) -> str:
    """The family that costs the other one most of what it takes longer."""
    more = {
        family: other.shares.get(family, 0.0) * other.seconds - winner.shares.get(family, 0.0) * winner.seconds
        for family in {*winner.shares, *other.shares}
    }
    if not more or other.seconds <= winner.seconds:
        return ""
    family = max(sorted(more), key=lambda name: more[name])
    return f"; {render(more[family], 's')} more of it for {SHARES.get(family, family)}" if more[family] > 0 else ""
