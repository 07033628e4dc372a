"""Redistribution carried out with numpy, slowly and plainly: what tests hold the steps and the runtime against.

Every step is done as its name says, on the parts of a group, and nothing is looked up in the layouts but which dim an
axis splits: a wrong layout after a step therefore shows as a wrong number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from engines.superscaler.redistribution.pieces import pieces
from engines.superscaler.redistribution.steps import Crossing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from engines.superscaler.layout import Box, Layout
    from engines.superscaler.redistribution.steps import Step

    Parts = Mapping[int, np.ndarray]


def scattered(whole: np.ndarray, layout: Layout, seed: int = 0) -> dict[int, np.ndarray]:
    """The part of every device; addends are random integers that sum to (or have as maximum) the whole.

    Args:
        whole: Integers, so that sums are exact whatever their order; float64 or int64.
        layout: What each device is to hold.
        seed: Of the addends.
    """
    count = layout.addend(layout.mesh.devices[0])[1]
    random = np.random.default_rng(seed)
    if layout.reduction == "sum":
        addends = [random.integers(-9, 10, whole.shape).astype(whole.dtype) for _ in range(count - 1)]
        addends.append(whole - sum(addends))
    else:
        addends = [whole - random.integers(0, 10, whole.shape).astype(whole.dtype) for _ in range(count)]
        winner = random.integers(0, count, whole.shape)
        addends = [np.where(winner == number, whole, addend) for number, addend in enumerate(addends)]
    return {device: addends[index][_slices(box)].copy() for device, box, (index, _) in layout.held(whole.shape)}


def gathered(parts: Parts, layout: Layout, shape: tuple[int, ...]) -> np.ndarray:
    """The whole tensor from its parts.

    Raises:
        ValueError: copies differ.
    """
    held: dict[tuple[Box, tuple[int, int]], np.ndarray] = {}
    for device, box, addend in layout.held(shape):
        if not np.array_equal(held.setdefault((box, addend), parts[device]), parts[device]):
            raise ValueError(f"device {device} does not hold what others hold of {box}, addend {addend}")
    whole = np.full(shape, -np.inf if layout.reduction == "max" else 0.0)
    for (box, _), part in held.items():
        whole[_slices(box)] = _combine(layout.reduction, whole[_slices(box)], part)
    return whole


def carry_out(steps: Sequence[Step | Crossing], parts: Parts, shape: tuple[int, ...]) -> dict[int, np.ndarray]:
    """What every device holds after the steps, given what it holds before them."""
    for step in steps:
        if isinstance(step, Crossing) or step.kind == "exchange":
            parts = _exchanged(step, parts, shape)
        else:
            parts = _collective(step, parts)
    return dict(parts)


def _collective(step: Step, parts: Parts) -> dict[int, np.ndarray]:
    after: dict[int, np.ndarray] = {}
    reduction = step.before.reduction
    splits = next((dim for dim, axes in enumerate(step.after.dims) if set(step.axes) & set(axes)), None)
    joins = next((dim for dim, axes in enumerate(step.before.dims) if set(step.axes) & set(axes)), None)
    if step.kind == "slice":
        return _sliced(step, parts)
    for group in step.mesh.groups(step.axes):
        mine = [parts[device] for device in group]
        match step.kind:
            case "all-reduce":
                total = _combined(reduction, mine)
                results = [total.copy() for _ in group]
            case "reduce-scatter":
                results = np.split(_combined(reduction, mine), len(group), axis=splits)
            case "all-gather":
                results = [np.concatenate(mine, axis=joins)] * len(group)
            case "all-to-all":
                cut = [np.split(part, len(group), axis=splits) for part in mine]
                results = [np.concatenate([row[to] for row in cut], axis=joins) for to in range(len(group))]
            case "mask":
                results = [mine[0], *(np.zeros_like(part) for part in mine[1:])]
            case _:
                raise ValueError(f"{step.kind} is no collective")
        after.update(zip(group, results, strict=True))
    return after


def _sliced(step: Step, parts: Parts) -> dict[int, np.ndarray]:
    """One axis after the other, the way each splits its dim on its own."""
    for axis in step.axes:
        dim = next(dim for dim, axes in enumerate(step.after.dims) if axis in axes)
        degree = step.mesh.shape[axis]
        parts = {
            device: np.split(part, degree, axis=dim)[step.mesh.places[device][axis]] for device, part in parts.items()
        }
    return dict(parts)


def _exchanged(step: Step | Crossing, parts: Parts, shape: tuple[int, ...]) -> dict[int, np.ndarray]:
    boxes = {device: box for device, box, _ in step.before.held(shape)}
    dtype = next(iter(parts.values())).dtype
    empty = 0 if step.before.reduction == "sum" or not step.before.partial else -np.inf
    after = {
        device: np.full([stop - start for start, stop in box], empty, dtype)
        for device, box, _ in step.after.held(shape)
    }
    into = {device: box for device, box, _ in step.after.held(shape)}
    for piece in pieces(step.before, step.after, shape):
        data = parts[piece.source][_within(piece.box, boxes[piece.source])]
        place = _within(piece.box, into[piece.target])
        after[piece.target][place] = _combine(step.before.reduction, after[piece.target][place], data)
    return after


def _combined(reduction: str, parts: Sequence[np.ndarray]) -> np.ndarray:
    total = parts[0]
    for part in parts[1:]:
        total = _combine(reduction, total, part)
    return total


def _combine(reduction: str, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return one + other if reduction == "sum" else np.maximum(one, other)


def _slices(box: Box) -> tuple[slice, ...]:
    return tuple(slice(start, stop) for start, stop in box)


def _within(box: Box, outer: Box) -> tuple[slice, ...]:
    return tuple(slice(a - c, b - c) for (a, b), (c, _) in zip(box, outer, strict=True))
