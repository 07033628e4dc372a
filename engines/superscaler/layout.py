"""Who holds what: meshes of devices, and layouts of one tensor over a mesh.

A layout says for every axis of a mesh whether it splits one of the tensor's dims, holds addends of a sum, or repeats.
That is the compact form of a uniform set of sub-tensors (the paper's vTensors and RVD), with the devices' places in
it: two layouts of one mesh differ by what each *device* holds, so that every path between them ends on the right ones.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator

Reduction = Literal["sum", "max"]
Box = tuple[tuple[int, int], ...]
"""Start and stop along every dim."""


@dataclass(frozen=True)
class Mesh:
    """Devices in a box, row-major (the last axis is fastest).

    With `sequential` > 1 there is one more, innermost axis of that many parts, which all lie on the same device and are
    done one after another: co-shard's operators are split into more parts than there are devices.
    """

    devices: tuple[int, ...]
    shape: tuple[int, ...]
    sequential: int = 1

    def __post_init__(self) -> None:
        if math.prod(self.shape) != len(self.devices):
            raise ValueError(f"a mesh of {self.shape} needs {math.prod(self.shape)} devices, not {len(self.devices)}")
        if len(set(self.devices)) != len(self.devices):
            raise ValueError(f"a mesh has each device once: {self.devices}")

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        # Meshes of a thousand devices are part of every layout, and layouts are keys everywhere.
        return hash((self.devices, self.shape, self.sequential))

    @property
    def size(self) -> int:
        """How many devices."""
        return len(self.devices)

    @cached_property
    def places(self) -> dict[int, tuple[int, ...]]:
        """Device -> its coordinates (spatial axes alone)."""
        return dict(zip(self.devices, itertools.product(*map(range, self.shape)), strict=True))

    def groups(self, axes: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        """The sets of devices that differ in `axes` alone; in each the first of `axes` is major, as in a layout's dim.

        A group is therefore in the order of its members' parts when `axes` are those of a dim.
        """
        found: dict[tuple[int, ...], list[int]] = {}
        for device, place in self.places.items():
            key = tuple(c for axis, c in enumerate(place) if axis not in axes)
            found.setdefault(key, []).append(device)

        def order(device: int) -> tuple[int, ...]:
            return tuple(self.places[device][axis] for axis in axes)

        return tuple(tuple(sorted(group, key=order)) for group in found.values())

    def refined(self, other: Mesh) -> Mesh | None:
        """The coarsest box that has the axes of both as runs of axes of its own; None if there is none.

        Both must have the same devices in the same order: (8,) and (2, 4) give (2, 4), (4, 2) and (2, 4) give
        (2, 2, 2), and (2, 3) has nothing in common with (3, 2).
        """
        if self.devices != other.devices:
            return None
        strides = sorted({*_strides(self.shape), *_strides(other.shape)})
        if any(large % small for small, large in itertools.pairwise(strides)):
            return None
        shape = tuple(large // small for small, large in itertools.pairwise(strides))[::-1]
        return Mesh(self.devices, shape)

    def runs(self, fine: Mesh) -> tuple[tuple[int, ...], ...] | None:
        """For every axis those of `fine` that make it up, major first; None if `fine` is no refinement of this."""
        if self.devices != fine.devices:
            return None
        found, axis = [], 0
        for degree in self.shape:
            run, size = [], 1
            while size < degree and axis < len(fine.shape):
                run.append(axis)
                size *= fine.shape[axis]
                axis += 1
            if size != degree:
                return None
            found.append(tuple(run))
        return tuple(found)


def _strides(shape: tuple[int, ...]) -> list[int]:
    """How many devices apart neighbours along each axis are, and how many there are in all."""
    return [math.prod(shape[axis:]) for axis in range(len(shape) + 1)]


@dataclass(frozen=True)
class Layout:
    """How a tensor lies on a mesh.

    Axes that neither split a dim nor are partial hold equal copies. The sequential axis of a mesh, if any, has the
    number ``len(mesh.shape)``.
    """

    mesh: Mesh
    dims: tuple[tuple[int, ...], ...]
    """For every dim of the tensor, the mesh axes that split it, major first; every axis at most once in a layout."""
    partial: tuple[int, ...] = ()
    """Axes along which devices hold addends (rising)."""
    reduction: Reduction = "sum"
    """How addends combine."""

    @classmethod
    def replicated(cls, mesh: Mesh, rank: int) -> Layout:
        """A whole copy of a tensor of `rank` dims on every device."""
        return cls(mesh, ((),) * rank)

    def joined(self) -> Layout:
        """What is seen from outside a co-sharded run: its parts concatenated or added, no sequential axis left."""
        if self.mesh.sequential == 1:
            return self
        last = len(self.mesh.shape)
        dims = tuple(tuple(axis for axis in axes if axis != last) for axes in self.dims)
        partial = tuple(axis for axis in self.partial if axis != last)
        mesh = Mesh(self.mesh.devices, self.mesh.shape)
        return Layout(mesh, dims, partial, self.reduction if partial else "sum")

    def degree(self, axis: int) -> int:
        """Size of an axis, the sequential one included."""
        return self.mesh.sequential if axis == len(self.mesh.shape) else self.mesh.shape[axis]

    def local_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """What one device (and sequential part) holds of a tensor of `shape`.

        Raises:
            ValueError: a dim does not divide.
        """
        local = []
        for size, axes in zip(shape, self.dims, strict=True):
            parts = math.prod(self.degree(axis) for axis in axes)
            if size % parts:
                raise ValueError(f"a dim of {size} cannot be split into {parts} equal parts")
            local.append(size // parts)
        return tuple(local)

    def box(self, shape: tuple[int, ...], device: int, part: int = 0) -> Box:
        """The region of the whole tensor that a device (and sequential part) holds."""
        return self._box(self.local_shape(shape), (*self.mesh.places[device], part))

    def _box(self, lengths: tuple[int, ...], place: tuple[int, ...]) -> Box:
        found = []
        for length, axes in zip(lengths, self.dims, strict=True):
            index = 0
            for axis in axes:
                index = index * self.degree(axis) + place[axis]
            found.append((index * length, (index + 1) * length))
        return tuple(found)

    def addend(self, device: int, part: int = 0) -> tuple[int, int]:
        """(i, n): it holds the i-th of n addends; (0, 1) for whole values."""
        place = (*self.mesh.places[device], part)
        index, count = 0, 1
        for axis in self.partial:
            index, count = index * self.degree(axis) + place[axis], count * self.degree(axis)
        return index, count

    def held(self, shape: tuple[int, ...]) -> Iterator[tuple[int, Box, tuple[int, int]]]:
        """(device, region, addend) of every device."""
        lengths = self.local_shape(shape)
        for device in self.mesh.devices:
            yield device, self._box(lengths, (*self.mesh.places[device], 0)), self.addend(device)

    def refined(self, mesh: Mesh) -> Layout:
        """The same layout in terms of a refinement of its mesh.

        Raises:
            ValueError: `mesh` is none.
        """
        runs = self.mesh.runs(mesh)
        if runs is None:
            raise ValueError(f"a mesh of {mesh.shape} does not refine one of {self.mesh.shape}")
        dims = tuple(tuple(fine for axis in axes for fine in runs[axis]) for axes in self.dims)
        partial = tuple(fine for axis in self.partial for fine in runs[axis])
        return Layout(mesh, dims, partial, self.reduction)

    def coarsened(self, mesh: Mesh) -> Layout | None:
        """The same layout in terms of a mesh that this one's refines; None if it uses a part of one of its axes."""
        runs = mesh.runs(self.mesh)
        if runs is None:
            return None
        dims = [_joined(axes, runs, self.mesh.shape) for axes in self.dims]
        partial = _joined(self.partial, runs, self.mesh.shape)
        if partial is None or None in dims:
            return None
        return Layout(mesh, tuple(axes for axes in dims if axes is not None), partial, self.reduction)

    def same(self, other: Layout, shape: tuple[int, ...]) -> bool:
        """Whether every device holds the same of a tensor of `shape`, however the two say it."""
        if set(self.mesh.devices) != set(other.mesh.devices) or (self.partial and self.reduction != other.reduction):
            return False
        return {d: (b, a) for d, b, a in self.held(shape)} == {d: (b, a) for d, b, a in other.held(shape)}


def _joined(axes: tuple[int, ...], runs: tuple[tuple[int, ...], ...], shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Fine axes as the coarse ones that they make up, or None; `shape` is that of the fine mesh."""
    first = {run[0]: number for number, run in enumerate(runs) if run}
    coarse, left = [], [axis for axis in axes if shape[axis] > 1]
    while left:
        number = first.get(left[0])
        if number is None or tuple(left[: len(runs[number])]) != runs[number]:
            return None
        coarse.append(number)
        left = left[len(runs[number]) :]
    return tuple(coarse)
