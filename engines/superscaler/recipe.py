"""A plan by hand, as data: what a spec carries under `by_hand`.

::

    stages:                                # op-assign; later stages take operators from earlier ones
      - {ops: ["*"], devices: "0-1", axes: {data: 1, tensor: 2}}
      - {ops: ["layers.1.*", "norm", "head", "cross_entropy*"], devices: [2, 3], axes: {data: 1, tensor: 2}}
    splits:                                # op-trans, in turn; '' replicates
      - {ops: "*.up", on: n, axis: tensor}
      - {ops: "*.down", on: k, axis: tensor}
      - {follow: batch, axis: data}        # all others go along with the batch (dim 0 of the inputs)
    recompute: ["layers.*.feed_forward.*"] # each entry a group
    co_shard:
      - {ops: ["layers.0.feed_forward.*"], parts: 2, on: {"*.up": n, "*.activation": d2, "*.down": k}}
    weights: [{weights: "*", axis: data, gradient: true, value: false}]
    order: 1f1b                            # or a list of blocks [stage, micro-batch, F | B | W]
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engines.superscaler import propagation, scheduling, transformation
from engines.superscaler.draft import Draft
from engines.superscaler.operands import parts_of
from engines.superscaler.plan import Block
from harness.api import PlanError, nearest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from engines.superscaler.graph import Graph
    from engines.superscaler.plan import Plan

FIELDS = {
    "": {"stages", "splits", "recompute", "co_shard", "weights", "order", "name"},
    "stages": {"ops", "devices", "axes", "name"},
    "splits": {"ops", "on", "axis", "follow"},
    "co_shard": {"ops", "parts", "on"},
    "weights": {"weights", "axis", "gradient", "value"},
}
"""What may be given where."""


def read(recipe: Mapping[str, Any], graph: Graph, *, devices: int, micro_batches: int = 1) -> Plan:
    """The plan that a recipe describes.

    Args:
        recipe: See the module.
        graph: The model.
        devices: How many there are.
        micro_batches: Of a step.

    Raises:
        PlanError: a field, pattern, axis or device that does not exist; says the nearest that does.
    """
    _known(recipe, "")
    draft = Draft(graph, micro_batches, str(recipe.get("name", "by hand")))
    draft.origin["plan"] = "by-hand"
    if not recipe.get("stages"):
        raise PlanError("by_hand: expected `stages`, at least one of {ops, devices}")
    for number, stage in enumerate(_each(recipe, "stages")):
        ranks = _devices(stage.get("devices", range(devices)), devices, number)
        ops, axes = _needed(stage, "ops", f"stages[{number}]"), stage.get("axes")
        scheduling.assign(draft, ops, ranks, axes, str(stage.get("name", "")))
    for number, split in enumerate(_each(recipe, "splits")):
        _split(draft, split, number)
    for patterns in recipe.get("recompute", ()):
        transformation.recompute(draft, patterns)
    for number, group in enumerate(_each(recipe, "co_shard")):
        where = f"co_shard[{number}]"
        parts = int(_needed(group, "parts", where))
        transformation.co_shard(draft, _needed(group, "ops", where), parts, _needed(group, "on", where))
    for number, kept in enumerate(_each(recipe, "weights")):
        axis = _needed(kept, "axis", f"weights[{number}]")
        how = {key: bool(kept.get(key, False)) for key in ("gradient", "value")}
        transformation.shard_weights(draft, kept.get("weights", "*"), axis, **how)
    order = recipe.get("order", "1f1b")
    scheduling.order(draft, order if isinstance(order, str) else _blocks(order))
    return draft.plan()


def _split(draft: Draft, split: Mapping[str, Any], number: int) -> None:
    axis = _needed(split, "axis", f"splits[{number}]")
    if "follow" in split:
        if split["follow"] != "batch":
            raise PlanError(f"by_hand: splits[{number}].follow is {split['follow']!r}; expected 'batch'")
        _follow(draft, axis)
        return
    ops, name = _needed(split, "ops", f"splits[{number}]"), _needed(split, "on", f"splits[{number}]")
    if name:
        transformation.partition(draft, ops, name, axis)
    else:
        transformation.replicate(draft, ops, axis)


def _follow(draft: Draft, axis: str) -> None:
    """Split along an axis whatever has no rule for it as its inputs are, beginning with the batch."""
    graph = draft.graph
    degrees = {op.name: draft.axes_of(op.name).get(axis, 1) for op in graph.ops}
    degree = max(degrees.values())
    others = {}
    for op in graph.ops:
        axes = {name: size for name, size in draft.axes_of(op.name).items() if name != axis}
        others[op.name] = parts_of([draft.splits.get((op.name, name), "") for name in axes], list(axes.values()))
    fixed = {op: name for (op, along), name in draft.splits.items() if along == axis}
    start = {tensor: 0 for tensor in graph.inputs if graph.tensors[tensor].shape}
    found = propagation.follow(graph, propagation.fits(degree, others), start, fixed)
    by_name: dict[str, list[str]] = {}
    for op, name in found.items():
        if name and op not in fixed and degrees[op] > 1:
            by_name.setdefault(name, []).append(op)
    for name, ops in by_name.items():
        transformation.partition(draft, ops, name, axis)


def _devices(given: Any, count: int, stage: int) -> tuple[int, ...]:
    """Ranks of a list, or of ranges such as `0-3,6`."""
    try:
        if isinstance(given, str):
            bounds = [part.split("-") for part in given.split(",")]
            ranks = [rank for b in bounds for rank in range(int(b[0]), int(b[-1]) + 1)]
        else:
            ranks = [int(rank) for rank in ([given] if isinstance(given, int) else given)]
    except (TypeError, ValueError):
        raise PlanError(f"by_hand: stages[{stage}].devices is {given!r}; expected [0, 1] or '0-1'") from None
    wrong = [rank for rank in ranks if not 0 <= rank < count]
    if wrong:
        raise PlanError(f"by_hand: stages[{stage}] has device {wrong[0]}, but there are {count} (0 to {count - 1})")
    return tuple(ranks)


def _blocks(order: Iterable[Any]) -> list[Block]:
    found = []
    for number, block in enumerate(order):
        try:
            stage, micro_batch, what = block
            found.append(Block(int(stage), int(micro_batch), what))
        except (TypeError, ValueError):
            raise PlanError(
                f"by_hand: order[{number}] is {block!r}; expected [stage, micro-batch, F | B | W]"
            ) from None
    return found


def _each(recipe: Mapping[str, Any], field: str) -> list[Mapping[str, Any]]:
    found = list(recipe.get(field, ()))
    for number, entry in enumerate(found):
        if not isinstance(entry, dict):
            raise PlanError(f"by_hand: {field}[{number}] is {entry!r}; expected {{{', '.join(sorted(FIELDS[field]))}}}")
        _known(entry, field, number)
    return found


def _known(given: Mapping[str, Any], field: str, number: int | None = None) -> None:
    for key in given:
        if key not in FIELDS[field]:
            close = nearest(key, FIELDS[field])
            hint = f"; did you mean {close!r}?" if close else ""
            where = f"{field}[{number}]." if field else ""
            raise PlanError(f"by_hand: no field {where}{key} (there are {', '.join(sorted(FIELDS[field]))}){hint}")


def _needed(given: Mapping[str, Any], key: str, where: str) -> Any:
    if key not in given:
        raise PlanError(f"by_hand: {where} lacks {key!r}")
    return given[key]
