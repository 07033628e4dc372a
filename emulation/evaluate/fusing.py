"""Fusing: parts of a chain that share nothing with anybody become one node.

A kernel shares no link, and neither does a collective whose links nobody else uses but the same ranks on the same
stream, one after another. Runs of such parts take the sum of their times whatever else happens, so one node stands for
them; its pieces are kept for timelines and for the shares of each family.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from emulation.cost import Cost, Piece
from emulation.evaluate.room import lone_duration
from emulation.figures import weakest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from emulation.graph import Node
    from emulation.topology import DirectedLink


@dataclass(frozen=True)
class Stage:
    """One node to be: what the ranks of one class do, for one part or several."""

    representatives: tuple[int, ...]
    kind: str
    cost: Cost
    name: str = ""
    action: Node | None = None
    """What a single part does; None for a run of them."""


class Fuser:
    """Fuses what can be.

    Args:
        links: that the weights of costs number.
        lanes: link -> the lanes of everything that moves over it; links without an entry are shared.
    """

    def __init__(self, links: Sequence[DirectedLink], lanes: Mapping[int, set[tuple[object, ...]]]) -> None:
        self._links = links
        self._lanes = lanes

    def fused(self, parts: Sequence[Sequence[Stage]], stream: str) -> Iterator[list[Stage]]:
        """The parts of a chain, each a stage for every group class, with runs of private ones joined."""
        run: list[Sequence[Stage]] = []
        for stages in parts:
            if run and not (self._private(stages, stream) and _same(run[-1], stages)):
                yield self._joined(run)
                run = []
            if self._private(stages, stream):
                run.append(stages)
            else:
                yield list(stages)
        if run:
            yield self._joined(run)

    def _private(self, stages: Sequence[Stage], stream: str) -> bool:
        return bool(self._lanes) and all(
            len(stage.representatives) == 1
            and all(self._lanes.get(link) == {(stage.representatives, stream)} for link, _ in stage.cost.weights)
            for stage in stages
        )

    def _joined(self, run: Sequence[Sequence[Stage]]) -> list[Stage]:
        if len(run) == 1 and not any(stage.cost.work for stage in run[0]):
            return list(run[0])
        return [self._one(column) for column in zip(*run, strict=True)]

    def _one(self, stages: Sequence[Stage]) -> Stage:
        pieces = tuple(
            Piece(stage.name, stage.action.op or stage.kind if stage.action else stage.kind, sum(times), stage.cost)
            for stage in stages
            for times in [lone_duration(stage.cost, self._links)]
        )
        traffic: dict[int, float] = {}
        for piece in pieces:
            for link, amount in piece.cost.traffic:
                traffic[link] = traffic.get(link, 0.0) + amount
        cost = Cost(
            "compute",
            weakest(piece.cost.grade for piece in pieces),
            fixed=sum(piece.duration for piece in pieces),
            traffic=tuple(sorted(traffic.items())),
            pieces=pieces,
        )
        return Stage(stages[0].representatives, "chain", cost)


def _same(left: Sequence[Stage], right: Sequence[Stage]) -> bool:
    return [stage.representatives for stage in left] == [stage.representatives for stage in right]
