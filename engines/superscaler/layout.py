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

    @property
    def size(self) -> int:
        """How many devices."""
        return len(self.devices)

    @cached_property
    def places(self) -> dict[int, tuple[int, ...]]:
        """Device -> its coordinates (spatial axes alone)."""
        return dict(zip(self.devices, itertools.product(*map(range, self.shape)), strict=True))

    def groups(self, axes: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        """The sets of devices that differ in `axes` alone; each in mesh order."""
        found: dict[tuple[int, ...], list[int]] = {}
        for device, place in self.places.items():
            key = tuple(c for axis, c in enumerate(place) if axis not in axes)
            found.setdefault(key, []).append(device)
        return tuple(tuple(group) for group in found.values())


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
        place = (*self.mesh.places[device], part)
        found = []
        for length, axes in zip(self.local_shape(shape), self.dims, strict=True):
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
        for device in self.mesh.devices:
            yield device, self.box(shape, device), self.addend(device)
