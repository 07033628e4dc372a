"""Phase 1, op-trans: how operators are split, recomputed, and their weights kept.

Functions that add rules to a `Draft`. They know neither devices nor order: an axis is a name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engines.superscaler.draft import Grouped, Sharded, matching
from harness.api import PlanError, nearest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from engines.superscaler.draft import Draft


def partition(draft: Draft, ops: str | Iterable[str], identifier: str, axis: str) -> None:
    """Split operators along a mesh axis: tensors that have the identifier are divided, others replicated or summed.

    Raises:
        PlanError: an operator that cannot be split on the identifier.
    """
    for name in draft.match(ops):
        annotation = draft.graph.by_name[name].annotation
        possible = annotation.splittable()
        if identifier not in possible:
            close = nearest(identifier, possible)
            hint = f"; did you mean {close!r}?" if close else ""
            choices = ", ".join(possible) or "nothing"
            raise PlanError(
                f"operator {name!r} ({annotation}) cannot be split on {identifier!r}, only on {choices}{hint}"
            )
        draft.splits[name, axis] = identifier


def replicate(draft: Draft, ops: str | Iterable[str], axis: str) -> None:
    """Let every device along an axis do all of some operators (no gradient is summed)."""
    for name in draft.match(ops):
        draft.splits[name, axis] = ""


def recompute(draft: Draft, ops: str | Iterable[str]) -> None:
    """Keep only what enters a group of operators, and compute it again in the backward pass.

    Operators that do not stand together become a group each.
    """
    draft.groups.append(Grouped(frozenset(draft.match(ops))))


def co_shard(draft: Draft, ops: str | Iterable[str], parts: int, identifiers: Mapping[str, str]) -> None:
    """Do a group of operators in `parts` pieces one after another on the same device, each recomputed.

    Args:
        draft: Where to.
        ops: The group.
        parts: How many pieces.
        identifiers: Pattern -> what the operators that match are split on; others are done whole in every part.

    Raises:
        PlanError: fewer than two parts, or a pattern that matches no operator.
    """
    if parts < 2:
        raise PlanError(f"co-shard takes at least two parts, not {parts}; recompute does with one")
    found: dict[str, str] = {}
    for pattern, identifier in identifiers.items():
        found.update(dict.fromkeys(draft.match(pattern), identifier))
    draft.groups.append(Grouped(frozenset(draft.match(ops)), parts, found))


def shard_weights(
    draft: Draft, weights: str | Iterable[str], axis: str, *, gradient: bool = False, value: bool = False
) -> None:
    """Divide the optimizer's state (ZeRO-1), and the gradients (2), and the values (3) of weights along an axis.

    Each is divided along its first dim that divides; one that has none, or is split along the axis anyway, stays.
    """
    names = matching(draft.graph.parameters, weights, "parameter")
    draft.sharded.append(Sharded(frozenset(names), axis, gradient or value, value))
