"""One box for all meshes of a plan: axes of which every mesh is a slice.

Stages of a uniform plan lie next to each other, so the cluster's devices form one box: pipeline x data x tensor. The
box is found, not told: every axis of every mesh is a stride and a size, and where all the strides divide one another,
what lies between two of them is an axis of the box. Stages may then have meshes of other shapes than their neighbours
(2 x 4 beside 4 x 2, or one over all devices), as long as those are slices of the same box.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from engines.superscaler.layout import Mesh


@dataclass(frozen=True)
class Slice:
    """Where a mesh lies in a box."""

    fixed: tuple[tuple[str, int], ...]
    """Axes of the box that it does not extend along, and its place there."""
    axes: tuple[tuple[str, ...], ...]
    """For every axis of the mesh, the axes of the box it is made of, major first."""


@dataclass(frozen=True)
class Box:
    """Axes, the last one fastest, over devices in rising order."""

    devices: tuple[int, ...]
    strides: tuple[int, ...]
    """Of each axis, falling."""
    sizes: tuple[int, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the axes: by how far apart neighbours are."""
        return tuple(f"by{stride}" for stride in self.strides)

    def place(self, mesh: Mesh) -> Slice:
        """The slice that a mesh is; it has to be one of those the box was made for."""
        steps = _steps(mesh, self.devices)
        if steps is None:
            raise ValueError(f"the devices {mesh.devices} do not lie in the box")
        first, strides = steps
        axes: list[tuple[str, ...]] = []
        covered: set[int] = set()
        for stride, size in zip(strides, mesh.shape, strict=True):
            own = [n for n, s in enumerate(self.strides) if size > 1 and stride <= s < stride * size]
            covered.update(own)
            axes.append(tuple(self.names[n] for n in own))
        digits = [first // stride % size for stride, size in zip(self.strides, self.sizes, strict=True)]
        fixed = tuple((self.names[n], digit) for n, digit in enumerate(digits) if n not in covered)
        return Slice(fixed, tuple(axes))


def box(meshes: Iterable[Mesh]) -> Box | None:
    """The box that all these meshes are slices of; None if there is none."""
    distinct = list(dict.fromkeys(meshes))
    devices = tuple(sorted({device for mesh in distinct for device in mesh.devices}))
    bounds = {1, len(devices)}
    found = [_steps(mesh, devices) for mesh in distinct]
    if any(steps is None for steps in found):
        return None
    for mesh, steps in zip(distinct, found, strict=True):
        assert steps is not None
        for stride, size in zip(steps[1], mesh.shape, strict=True):
            if size > 1:
                bounds |= {stride, stride * size}
    rising = sorted(bounds)
    if any(larger % smaller for smaller, larger in itertools.pairwise(rising)):
        return None
    strides = tuple(reversed(rising[:-1]))
    sizes = tuple(larger // smaller for smaller, larger in reversed(list(itertools.pairwise(rising))))
    made = Box(devices, strides, sizes)
    aligned = all(_aligned(made, mesh, steps) for mesh, steps in zip(distinct, found, strict=True) if steps)
    return made if aligned else None


def _steps(mesh: Mesh, devices: Sequence[int]) -> tuple[int, tuple[int, ...]] | None:
    """(position of the first device, stride of every axis) among all devices; None if it is not such a lattice."""
    position = {device: number for number, device in enumerate(devices)}
    if any(device not in position for device in mesh.devices):
        return None
    places = np.array([position[device] for device in mesh.devices]).reshape(mesh.shape)
    first = int(places.flat[0])
    strides = []
    for axis, size in enumerate(mesh.shape):
        if size == 1:
            strides.append(0)
            continue
        index = [0] * len(mesh.shape)
        index[axis] = 1
        strides.append(int(places[tuple(index)]) - first)
    if any(stride <= 0 for stride, size in zip(strides, mesh.shape, strict=True) if size > 1):
        return None
    expected = np.full(mesh.shape, first)
    for axis, (stride, size) in enumerate(zip(strides, mesh.shape, strict=True)):
        shape = [1] * len(mesh.shape)
        shape[axis] = size
        expected = expected + (np.arange(size) * stride).reshape(shape)
    return (first, tuple(strides)) if np.array_equal(places, expected) else None


def _aligned(made: Box, mesh: Mesh, steps: tuple[int, tuple[int, ...]]) -> bool:
    """Whether a mesh starts at place 0 of the axes that it extends along."""
    first, strides = steps
    return not any(
        first // own % length
        for stride, size in zip(strides, mesh.shape, strict=True)
        for own, length in zip(made.strides, made.sizes, strict=True)
        if size > 1 and stride <= own < stride * size
    )
