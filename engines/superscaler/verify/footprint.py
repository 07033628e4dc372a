"""What a run reads and yields at one place of its mesh, derived from the annotations of its operators.

A run is interpreted operator by operator, forward and then backward, on boxes and contents. The result is the same for
every micro-batch, so it is made once for a place and then only relabelled.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from engines.superscaler.verify.values import (
    Conflict,
    Region,
    Value,
    added,
    combined,
    difference,
    extent,
    joined,
    size,
    term,
    written,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from engines.superscaler.graph import Graph, Op
    from engines.superscaler.layout import Box, Layout
    from engines.superscaler.program import Run
    from engines.superscaler.verify.truth import Truth
    from engines.superscaler.verify.values import Content

ANY = 0
"""The micro-batch that a footprint is written for."""


class Trace(NamedTuple):
    """A value that a run reads or makes, under the name its buffer has."""

    tensor: str
    variant: str
    value: Value


class Footprint(NamedTuple):
    """Of a run at a place, for micro-batch `ANY`."""

    reads: tuple[Trace, ...]
    makes: tuple[Trace, ...]
    wants: tuple[Trace, ...]
    """Gradients of outputs: what readers outside the run contribute."""
    yields: tuple[Trace, ...]
    """Gradients of inputs: what readers within the run contribute."""
    computed: Mapping[str, tuple[Box, ...]]
    """The part of its domain that each operator goes over, identifiers in alphabetical order."""
    faults: tuple[Conflict, ...]


def footprint(truth: Truth, run: Run, place: tuple[int, ...]) -> Footprint:
    """Interpret a run at a place."""
    sides = [_Side(truth, run, (*place, part)) for part in range(run.mesh.sequential)]
    faults = {fault: None for side in sides for fault in side.faults}
    axis = len(run.mesh.shape)

    def together(entries: Sequence[tuple[str, str, Layout]], parts: Sequence[Mapping[str, Value]]) -> tuple[Trace, ...]:
        found = []
        for tensor, variant, layout in entries:
            values = tuple(part[tensor] for part in parts if tensor in part)
            if len(values) < len(parts):
                continue
            whole = _together(values, layout, axis)
            if isinstance(whole, Conflict):
                faults.setdefault(Conflict(whole.invariant, f"co-shard {whole.message}"))
            else:
                found.append(Trace(tensor, variant, whole))
        return tuple(found)

    computed: dict[str, tuple[Box, ...]] = {
        name: tuple(dict.fromkeys(side.computed[name] for side in sides)) for name in sides[0].computed
    }
    return Footprint(
        together(run.inputs, [side.reads for side in sides]),
        together(run.outputs, [side.makes for side in sides]),
        together([(t, v, replace(layout, partial=())) for t, v, layout in run.outputs], [side.wants for side in sides]),
        together(run.gradients, [side.yields for side in sides]),
        computed,
        tuple(faults),
    )


@lru_cache(maxsize=1 << 16)
def relabelled(content: Content, micro_batch: int) -> Content:
    """For another micro-batch."""
    return tuple(entry._replace(micro_batch=micro_batch) if entry.micro_batch == ANY else entry for entry in content)


def _together(values: tuple[Value, ...], layout: Layout, axis: int) -> Value | Conflict:
    """What the rank holds of the sequential parts."""
    if len(values) == 1:
        return values[0]
    dim = next((number for number, axes in enumerate(layout.dims) if axis in axes), None)
    if dim is not None:
        return joined(values, dim)
    if axis in layout.partial:
        return added(values, layout.reduction)
    if any(value != values[0] for value in values):
        return Conflict("I2", f"parts of {values[0].tensor!r} differ, although its layout says they are copies")
    return values[0]


def ranges(op: Op, splits: Sequence[str], degrees: Sequence[int], place: Sequence[int]) -> dict[str, tuple[int, int]]:
    """The range of every identifier that a place goes over; axes of one identifier go major first."""
    index: dict[str, int] = {}
    degree: dict[str, int] = {}
    for axis, name in enumerate(splits):
        if name:
            index[name] = index.get(name, 0) * degrees[axis] + place[axis]
            degree[name] = degree.get(name, 1) * degrees[axis]
    found = {}
    for name, length in op.annotation.sizes.items():
        step = length // degree.get(name, 1)
        found[name] = (index.get(name, 0) * step, (index.get(name, 0) + 1) * step)
    return found


def box_of(dims: Sequence[tuple[str, ...]], sizes: Mapping[str, int], over: Mapping[str, tuple[int, int]]) -> Box:
    """The box of a tensor that goes with ranges of identifiers (only the outermost of a fused dim is divided)."""
    found = []
    for dim in dims:
        if not dim:
            found.append((0, 1))
            continue
        inner = 1
        for name in dim[1:]:
            inner *= sizes[name]
        start, stop = over[dim[0]]
        found.append((start * inner, stop * inner))
    return tuple(found)


class _Side:
    """A run at one place and one sequential part."""

    def __init__(self, truth: Truth, run: Run, place: tuple[int, ...]) -> None:
        self.truth, self.run = truth, run
        self.graph: Graph = truth.graph
        self.faults: list[Conflict] = []
        self.reads: dict[str, Value] = {}
        self.makes: dict[str, Value] = {}
        self.wants: dict[str, Value] = {}
        self.yields: dict[str, Value] = {}
        self.computed: dict[str, Box] = {}
        degrees = (*run.mesh.shape, run.mesh.sequential)
        self.over = {
            name: ranges(self.graph.by_name[name], run.splits.get(name, ()), degrees, place) for name in run.ops
        }
        made = self._forward()
        self._backward(made)

    def _fault(self, invariant: str, message: str) -> None:
        self.faults.append(Conflict(invariant, f"run {self.run.number}: {message}"))

    def _forward(self) -> dict[str, Value]:
        taken = {tensor for tensor, _, _ in self.run.inputs}
        made: dict[str, Value] = {}
        for name in self.run.ops:
            op = self.graph.by_name[name]
            over = self.over[name]
            self.computed[name] = tuple(over[identifier] for identifier in sorted(over))
            for slot, tensor in enumerate(op.inputs):
                box = box_of(op.annotation.inputs[slot], op.annotation.sizes, over)
                if tensor in made:
                    self._read_made(name, made[tensor], box)
                elif tensor in taken:
                    need = _one("value", tensor, box, self.truth.value(tensor, ANY))
                    if self.reads.setdefault(tensor, need) != need:
                        other = self.reads[tensor].regions[0].whole
                        self._fault(
                            "I2", f"{name!r} reads {written(box)} of {tensor!r}, another operator {written(other)}"
                        )
                else:
                    self._fault("I3", f"{name!r} reads {tensor!r}, which the run neither takes nor makes before")
            for slot, tensor in enumerate(op.outputs):
                made[tensor] = self._output(op, slot, over)
        for tensor, _, _ in self.run.outputs:
            if tensor in made:
                self.makes[tensor] = made[tensor]
            else:
                self._fault("I4", f"is to yield {tensor!r}, which none of its operators makes")
        return made

    def _read_made(self, name: str, value: Value, box: Box) -> None:
        region = value.regions[0]
        if region.whole != box:
            self._fault(
                "I2", f"{name!r} reads {written(box)} of {value.tensor!r}, of which there is {written(region.whole)}"
            )
        want = self.truth.value(value.tensor, ANY)
        if region.content != want:
            self._fault("I1", f"{name!r} reads {value.tensor!r}, which {difference(region.content, want)}")

    def _output(self, op: Op, slot: int, over: Mapping[str, tuple[int, int]]) -> Value:
        box = box_of(op.annotation.outputs[slot], op.annotation.sizes, over)
        names, domain = self.truth.summed_of_output(op, slot)
        part = tuple(over[name] for name in names)
        kinds = {
            op.annotation.reductions.get(name, "sum")
            for name, whole, here in zip(names, domain, part, strict=True)
            if whole != here
        }
        if len(kinds) > 1:
            self._fault("I1", f"{op.name!r} is split on identifiers that combine in different ways")
        reduction = "max" if kinds == {"max"} else "sum"
        return _one("value", op.outputs[slot], box, (term(ANY, op.name, slot, domain, part, reduction),))

    def _backward(self, made: Mapping[str, Value]) -> None:
        yielded = {tensor for tensor, _, _ in self.run.gradients}
        outputs = {tensor for tensor, _, _ in self.run.outputs}
        collected: dict[str, Value] = {}
        for name in reversed(self.run.ops):
            op = self.graph.by_name[name]
            if not self.truth.yields_gradients(op):
                continue
            for tensor in op.outputs:
                if tensor in self.truth.live:
                    self._want(made[tensor], collected.get(tensor), tensor in outputs)
            for slot, tensor in enumerate(op.inputs):
                if tensor in self.truth.live:
                    self._collect(op, slot, tensor, collected)
        for tensor in sorted(yielded):
            if tensor not in collected:
                self._fault("I1", f"is to yield the gradient of {tensor!r}, which none of its operators has")
            elif tensor not in made:
                self.yields[tensor] = collected[tensor]

    def _want(self, value: Value, inner: Value | None, is_output: bool) -> None:
        """What must come from outside, so that with what readers within the run contribute the gradient is whole."""
        tensor, box = value.tensor, value.regions[0].whole
        whole = self.truth.gradient(tensor, (ANY,))
        mine: Content = ()
        if inner is not None:
            mine = inner.regions[0].content
            if inner.regions[0].whole != box:
                here = inner.regions[0].whole
                self._fault("I2", f"the gradient of {tensor!r} is of {written(here)}, its value of {written(box)}")
        outside = tuple(entry for entry in whole if entry not in mine)
        keys = {entry[:3] for entry in mine}
        if len(outside) + len(mine) != len(whole) or any(entry[:3] in keys for entry in outside):
            self._fault("I1", f"within it, the gradient of {tensor!r} {difference(mine, whole)}")
        elif outside and is_output:
            self.wants[tensor] = _one("gradient", tensor, box, outside)
        elif outside:
            self._fault("I1", f"the gradient of {tensor!r} {difference(mine, whole)}: {tensor!r} is no output of it")

    def _collect(self, op: Op, slot: int, tensor: str, collected: dict[str, Value]) -> None:
        over = self.over[op.name]
        names, domain = self.truth.summed_of_gradient(op, slot)
        content = (term(ANY, op.name, slot, domain, tuple(over[name] for name in names)),)
        value = _one("gradient", tensor, box_of(op.annotation.inputs[slot], op.annotation.sizes, over), content)
        before = collected.get(tensor)
        if before is None:
            collected[tensor] = value
            return
        if before.regions[0].whole != value.regions[0].whole:
            return  # The forward pass has said that the operators read different boxes.
        total = combined(before.regions[0].content, content, "sum")
        if isinstance(total, Conflict):
            self._fault(total.invariant, total.message)
            return
        collected[tensor] = _one("gradient", tensor, before.regions[0].whole, total)


def _one(kind: str, tensor: str, box: Box, content: Content) -> Value:
    shape = size(box)
    return Value(tensor, kind, shape, (Region(extent(shape), box, content),))  # type: ignore[arg-type]


def at(value: Value, micro_batch: int) -> Value:
    """The value of a footprint, for a micro-batch."""
    return value._replace(
        regions=tuple(region._replace(content=relabelled(region.content, micro_batch)) for region in value.regions)
    )
