"""The cheapest steps from one layout to another on one mesh.

The nodes of the graph are layouts, which say what each *device* holds, so every path ends on the right ones: nnScaler's
nodes (how many replicas, addends and parts there are) do not, and its paths often have to be given up for full
replication. Its edges are the uniform collectives; an exchange, in which every rank is sent exactly what it lacks,
leads from the source, or from where its addends have been summed, to the target or to the target split further.

The graph is never built, since its size is exponential in the number of mesh axes while a path is short: Dijkstra's
algorithm runs over a heap and asks for the neighbours of what it takes from it. Axes on which both layouts agree are
left out first.
"""

from __future__ import annotations

import heapq
import itertools
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from engines.superscaler.layout import Layout, Mesh
from engines.superscaler.redistribution.prices import DEFAULT
from engines.superscaler.redistribution.steps import Kind, Step

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engines.superscaler.redistribution.prices import Prices


FEW = 8
"""Addends that an exchange may bring to one rank; of more, what a reduction first costs besides is next to nothing."""


class State(NamedTuple):
    """A layout without its mesh, without axes of one device, and without those that no path changes."""

    dims: tuple[tuple[int, ...], ...]
    partial: tuple[int, ...]


class Edge(NamedTuple):
    """A step between states."""

    kind: Kind
    axes: tuple[int, ...]
    after: State


@dataclass(frozen=True)
class Problem:
    """From one state to another, with what all states on the way have in common."""

    mesh: Mesh
    shape: tuple[int, ...]
    dtype: str
    source: State
    target: State
    prefix: State
    """What both layouts agree on: major axes of every dim, and partial ones."""
    source_reduction: str
    target_reduction: str

    @property
    def free(self) -> tuple[int, ...]:
        """Axes that a path may use: without those of `prefix` and those of one device."""
        fixed = {*itertools.chain(*self.prefix.dims), *self.prefix.partial}
        return tuple(axis for axis, degree in enumerate(self.mesh.shape) if degree > 1 and axis not in fixed)

    @property
    def local(self) -> tuple[int, ...]:
        """Shape of what the paths are about: a part of the tensor after the split both layouts agree on."""
        return Layout(self.mesh, self.prefix.dims).local_shape(self.shape)

    def layout(self, state: State) -> Layout:
        """The state as a layout."""
        dims = tuple(fixed + axes for fixed, axes in zip(self.prefix.dims, state.dims, strict=True))
        partial = tuple(sorted(self.prefix.partial + state.partial))
        # A sum's addends do not outlive its reduction, so that states with addends of both kinds do not exist.
        reduction = self.source_reduction if self.source.partial or self.prefix.partial else self.target_reduction
        return Layout(self.mesh, dims, partial, reduction if partial else "sum")  # type: ignore[arg-type]


def within(
    source: Layout, target: Layout, shape: tuple[int, ...], dtype: str, prices: Prices | None = None
) -> tuple[Step, ...]:
    """The cheapest steps from one layout to another on the same devices.

    Args:
        source: What there is.
        target: What is wanted; its mesh has the same devices in the same order, in a box of the same shape or another
            with which it has a refinement in common (see `Mesh.refined`).
        shape: Of the whole tensor.
        dtype: A key of `graph.BYTES`.
        prices: Cost of a step; bytes and hops by default. See `prices.Prices`.

    Returns:
        The steps; none if every device has what it needs. Where a step can be said on the mesh of the source or the
        target it is, else on a refinement.

    Raises:
        ValueError: the meshes have nothing in common (see `between`), a dim does not divide, or addends are of a kind
            that the target cannot hold.
    """
    return _within(source, target, tuple(shape), dtype, prices or DEFAULT)


@lru_cache(maxsize=65536)
def _within(source: Layout, target: Layout, shape: tuple[int, ...], dtype: str, prices: Prices) -> tuple[Step, ...]:
    mesh = source.mesh if source.mesh.shape == target.mesh.shape else source.mesh.refined(target.mesh)
    if mesh is None or source.mesh.devices != target.mesh.devices:
        raise ValueError(f"meshes {source.mesh.shape} and {target.mesh.shape} have no refinement in common")
    for layout in (source, target):
        layout.local_shape(shape)
    mesh = Mesh(mesh.devices, mesh.shape)
    one, other = source.refined(mesh), target.refined(mesh)
    if one.partial and other.partial and one.reduction != other.reduction:
        whole = Layout(mesh, one.dims)
        return _within(one, whole, shape, dtype, prices) + _within(whole, other, shape, dtype, prices)
    if other.reduction != "sum" and set(other.partial) - set(one.partial):
        raise ValueError(f"copies cannot become parts of a {other.reduction}: the zeros of the others would count")
    problem = _problem(one, other, shape, dtype)
    steps = tuple(
        Step(kind, axes, problem.layout(before), problem.layout(after))
        for kind, axes, before, after in _joined(_search(problem, prices))
    )
    return tuple(_plainly(step, source.mesh, target.mesh) for step in steps)


def _problem(source: Layout, target: Layout, shape: tuple[int, ...], dtype: str) -> Problem:
    """What is left to do once the two layouts' common part is taken out."""
    degrees = source.mesh.shape
    before, after = ([[a for a in axes if degrees[a] > 1] for axes in layout.dims] for layout in (source, target))
    prefix = []
    for one, other in zip(before, after, strict=True):
        common = 0
        while common < min(len(one), len(other)) and one[common] == other[common]:
            common += 1
        prefix.append(tuple(one[:common]))
    partial = tuple(a for a in source.partial if a in target.partial and degrees[a] > 1)

    def state(dims: list[list[int]], layout: Layout) -> State:
        rest = tuple(tuple(axes[len(fixed) :]) for axes, fixed in zip(dims, prefix, strict=True))
        return State(rest, tuple(a for a in layout.partial if a not in partial and degrees[a] > 1))

    return Problem(
        mesh=source.mesh,
        shape=shape,
        dtype=dtype,
        source=state(before, source),
        target=state(after, target),
        prefix=State(tuple(prefix), partial),
        source_reduction=source.reduction,
        target_reduction=target.reduction,
    )


def _search(problem: Problem, prices: Prices) -> list[tuple[Edge, State]]:
    """Dijkstra's algorithm: the edges of the cheapest path, each with the state before it."""
    costs: dict[tuple[str, tuple[int, ...], int], float] = {}
    order = itertools.count()
    best = {problem.source: 0.0}
    came: dict[State, tuple[Edge, State]] = {}
    done: set[State] = set()
    heap = [(0.0, next(order), problem.source)]
    neighbours = Neighbours(problem)
    while heap:
        reached, _, state = heapq.heappop(heap)
        if state == problem.target:
            break
        if state in done:
            continue
        done.add(state)
        size = neighbours.size(state)
        for edge in neighbours.of(state, came[state][0].kind if state in came else None):
            key = (edge.kind, edge.axes, size)
            price = costs.get(key) if edge.kind != "exchange" else None
            if price is None:
                step = Step(edge.kind, edge.axes, problem.layout(state), problem.layout(edge.after))
                price = costs[key] = prices(step, problem.shape, problem.dtype)
            if reached + price < best.get(edge.after, math.inf):
                best[edge.after] = reached + price
                came[edge.after] = (edge, state)
                heapq.heappush(heap, (reached + price, next(order), edge.after))
    path: list[tuple[Edge, State]] = []
    state = problem.target
    while state != problem.source:
        path.append(came[state])
        state = path[-1][1]
    return path[::-1]


class Neighbours:
    """The edges of a problem's graph."""

    def __init__(self, problem: Problem) -> None:
        self.degrees = problem.mesh.shape
        self.local = problem.local
        self.free = problem.free
        self.source, self.target = problem.source, problem.target
        self.maximum = problem.source_reduction == "max"
        self.home = {axis: dim for dim, axes in enumerate(self.target.dims) for axis in axes}
        # Where to scatter a sum that is gathered again: any dim will do, so the widest that no layout splits, if any
        # divides, beside those that the layouts split.
        used = {dim for state in (self.source, self.target) for dim, axes in enumerate(state.dims) if axes}
        others = (dim for dim in range(len(self.local)) if dim not in used)
        devices = math.prod(self.degrees[axis] for axis in self.free)
        widest = sorted(others, key=lambda dim: (self.local[dim] % devices != 0, -self.local[dim], dim))
        self.scratch = sorted(used | set(widest[:1]))
        self.ends = tuple(self._ends())

    def size(self, state: State) -> int:
        """Elements that a device holds."""
        return math.prod(self.local) // math.prod(self.degrees[a] for axes in state.dims for a in axes)

    def of(self, state: State, via: Kind | None) -> Iterator[Edge]:
        """Edges out of a state, which was come to by a step of kind `via`.

        An exchange is cheapest at once or as soon as the sum is made; what else is done before it can but cost. Copies
        that are gathered after it are those of a sum that it makes itself.
        """
        yield from self._gathers(state)
        yield from self._reductions(state)
        yield from self._slices(state)
        summed = not set(state.partial) - set(self.target.partial)
        # What an exchange brings is copied or added: a maximum is made by a collective first.
        possible = summed or not self.maximum
        if via is None and possible and math.prod(self.degrees[axis] for axis in state.partial) <= FEW:
            yield from (Edge("exchange", (), end) for end in self.ends)
        elif summed and via in ("all-reduce", "reduce-scatter") and state != self.target:
            yield Edge("exchange", (), self.target)

    def _fits(self, state: State, dim: int, axes: tuple[int, ...]) -> bool:
        return self.local[dim] % math.prod(self.degrees[a] for a in state.dims[dim] + axes) == 0

    def _gathers(self, state: State) -> Iterator[Edge]:
        """All-gathers of a dim's minor axes, and all-to-alls that split another dim by them instead."""
        for dim, axes in enumerate(state.dims):
            for kept in range(len(axes)):
                moved = axes[kept:]
                gathered = State(_with(state.dims, dim, axes[:kept]), state.partial)
                yield Edge("all-gather", moved, gathered)
                for other in self.scratch:
                    if other != dim and self._fits(state, other, moved):
                        dims = _with(gathered.dims, other, state.dims[other] + moved)
                        yield Edge("all-to-all", moved, State(dims, state.partial))

    def _reductions(self, state: State) -> Iterator[Edge]:
        """All-reduces and reduce-scatters along one partial axis or all of them."""
        summed = tuple(axis for axis in state.partial if axis not in self.target.partial)
        for axes in dict.fromkeys([*((axis,) for axis in summed), summed] if summed else []):
            rest = tuple(axis for axis in state.partial if axis not in axes)
            yield Edge("all-reduce", axes, State(state.dims, rest))
            for dim in self.scratch:
                if self._fits(state, dim, axes):
                    yield Edge("reduce-scatter", axes, State(_with(state.dims, dim, state.dims[dim] + axes), rest))

    def _slices(self, state: State) -> Iterator[Edge]:
        """Local steps: equal copies are cut, or become addends.

        Cuts that the target does not want pay only before a sum, where they save the copies doing it twice.
        """
        taken = {*itertools.chain(*state.dims), *state.partial}
        for axis in self.free:
            if axis in taken:
                continue
            for dim in self.scratch if state.partial else (self.home[axis],) if axis in self.home else ():
                if self._fits(state, dim, (axis,)):
                    yield Edge(
                        "slice", (axis,), State(_with(state.dims, dim, state.dims[dim] + (axis,)), state.partial)
                    )
            if axis in self.target.partial:
                yield Edge("mask", (axis,), State(state.dims, tuple(sorted((*state.partial, axis)))))

    def _ends(self) -> Iterator[State]:
        """Where an exchange may lead: the target, and the target with its copies cut up, to be gathered again."""
        yield self.target
        taken = {*itertools.chain(*self.target.dims), *self.target.partial}
        copies = tuple(axis for axis in self.free if axis not in taken)
        for axes in dict.fromkeys([*((axis,) for axis in copies), copies] if copies and self.source.partial else []):
            for dim in self.scratch:
                if self._fits(self.target, dim, axes):
                    yield State(_with(self.target.dims, dim, self.target.dims[dim] + axes), self.target.partial)


def _with(dims: tuple[tuple[int, ...], ...], dim: int, axes: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    return (*dims[:dim], axes, *dims[dim + 1 :])


def _joined(path: list[tuple[Edge, State]]) -> list[tuple[Kind, tuple[int, ...], State, State]]:
    """Consecutive local steps as one."""
    joined: list[tuple[Kind, tuple[int, ...], State, State]] = []
    for edge, before in path:
        if joined and edge.kind == joined[-1][0] and edge.kind in ("slice", "mask"):
            kind, axes, first, _ = joined.pop()
            joined.append((kind, axes + edge.axes, first, edge.after))
        else:
            joined.append((edge.kind, edge.axes, before, edge.after))
    return joined


def _plainly(step: Step, *meshes: Mesh) -> Step:
    """A step in terms of the first of the meshes that can say it, else as it is."""
    for mesh in meshes:
        if mesh.shape == step.mesh.shape:
            return step
        runs = mesh.runs(step.mesh)
        before, after = step.before.coarsened(mesh), step.after.coarsened(mesh)
        if runs is None or before is None or after is None:
            continue
        whole = {run: axis for axis, run in enumerate(runs) if run}
        axes, left = [], step.axes
        while left:
            run = next((run for run in whole if left[: len(run)] == run), None)
            if run is None:
                break
            axes.append(whole[run])
            left = left[len(run) :]
        if not left:
            return Step(step.kind, tuple(axes), before, after)
    return step
