"""Phase 2, space-time scheduling: op-assign (where) and op-order (when).

Functions that add to a `Draft`. They know nothing of how operators are split.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engines.superscaler import order as schedules
from engines.superscaler.draft import Assigned
from harness.api import PlanError, nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from engines.superscaler.draft import Draft
    from engines.superscaler.plan import Block


def assign(
    draft: Draft,
    ops: str | Iterable[str],
    devices: Sequence[int],
    axes: Mapping[str, int] | None = None,
    name: str = "",
) -> None:
    """Make a stage: operators on devices, which lie in a box with named axes (row-major, the last one fastest).

    Args:
        draft: Where to.
        ops: Patterns over names of operators. One that an earlier stage has goes over to this one.
        devices: Their ranks.
        axes: Name -> degree; by default one axis named `devices`.
        name: Of the stage; by default its number.
    """
    members = frozenset(draft.match(ops))
    draft.stages.append(
        Assigned(name or f"stage {len(draft.stages)}", members, tuple(devices), dict(axes or {"devices": len(devices)}))
    )


ORDERS: Mapping[str, Callable[[int, int], tuple[Block, ...]]] = {
    "gpipe": schedules.gpipe,
    "1f1b": schedules.one_f_one_b,
    "zero-bubble": schedules.zero_bubble,
    "zero-bubble-v": schedules.zero_bubble_v,
    "forward-only": schedules.forward_only,
}
"""Orders that need to know no more than the number of stages and of micro-batches."""


def order(draft: Draft, blocks: str | Iterable[Block]) -> None:
    """Say in which order blocks run: a schedule's name, or all blocks of a step.

    Raises:
        PlanError: no schedule of that name.
    """
    if not isinstance(blocks, str):
        draft.order = tuple(blocks)
        return
    if blocks not in ORDERS:
        close = nearest(blocks, ORDERS)
        hint = f"; did you mean {close!r}?" if close else ""
        raise PlanError(f"no order is named {blocks!r} (there are {', '.join(ORDERS)}){hint}")
    draft.order = ORDERS[blocks](len(draft.stages), draft.micro_batches)
