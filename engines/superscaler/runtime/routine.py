"""A run at one place of its mesh: operators between two communications, differentiated in one go by autograd.

Everything that can be looked up is looked up when a `Routine` is made, so that a step does little more than plain
PyTorch would.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch.autograd.graph import saved_tensors_hooks

from engines.superscaler.operators import Part, find
from harness.api import HarnessError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from engines.superscaler.graph import Graph, Op
    from engines.superscaler.layout import Layout, Mesh
    from engines.superscaler.program import Run

Half = Literal["backward", "inputs", "weights"]


class Call(NamedTuple):
    """One operator of a routine, with the slots its tensors are in."""

    compute: Callable[..., tuple[Tensor, ...]]
    op: Op
    inputs: tuple[int, ...]
    parts: Mapping[str, Part]
    outputs: tuple[int, ...]
    last: tuple[int, ...]
    """Slots that nothing reads afterwards."""


class Saved:
    """What a forward pass leaves to the backward pass."""

    __slots__ = ("gradients", "inputs", "outputs", "weights")

    def __init__(self, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> None:
        self.inputs = inputs
        """In the run's order; leaves of the graphs, if there are any."""
        self.outputs = outputs
        """With their autograd graphs; empty if the backward pass does the forward pass again."""
        self.gradients: tuple[Tensor | None, ...] = ()
        """Those of the outputs, between `inputs` and `weights`."""
        self.weights: dict[int, Tensor] | None = None
        """Where saved tensors that are views of weights find these again; None if autograd kept the weights."""


class Routine:
    """A run at one place of its mesh, ready to be called."""

    def __init__(self, graph: Graph, run: Run, place: tuple[int, ...]) -> None:
        """Compile.

        Args:
            graph: That the run is of.
            run: What to compute.
            place: The rank's coordinates in the run's mesh, without the sequential axis.

        Raises:
            HarnessError: an operator reads what the run does not have, or an output is made by none.
        """
        self.run = run
        self.parts = run.mesh.sequential
        self._chains = [Chain(graph, run, (*place, part)) for part in range(self.parts)]
        names = [tensor for tensor, _, _ in run.gradients]
        places = {tensor: number for number, (tensor, _, _) in enumerate(run.inputs)}
        unread = [name for name in names if name not in places]
        if unread:
            raise HarnessError(f"run {run.number} is to yield a gradient of {unread[0]!r}, which it does not read")
        self.differentiated = tuple(places[name] for name in names)
        """Inputs that have a gradient, in the order of the run's gradients."""
        self.weights = tuple(n for n, (name, _, _) in enumerate(run.inputs) if graph.tensors[name].role == "parameter")
        """Inputs that are parameters."""
        of_weights = {number for number, place in enumerate(self.differentiated) if place in self.weights}
        self.halves: dict[Half, tuple[int, ...]] = {
            "backward": tuple(range(len(names))),
            "inputs": tuple(number for number in range(len(names)) if number not in of_weights),
            "weights": tuple(number for number in range(len(names)) if number in of_weights),
        }
        """Which of the run's gradients each kind of backward pass yields."""
        if self.parts > 1:
            self._inputs = [Share.of(layout) for _, _, layout in run.inputs]
            self._outputs = [Share.of(layout) for _, _, layout in run.outputs]
            self._gradients = [Share.of(layout) for _, _, layout in run.gradients]

    def forward(
        self,
        inputs: tuple[Tensor, ...],
        saved: bool,
        leave: bool = False,
        note: Callable[[Tensor], None] | None = None,
    ) -> tuple[tuple[Tensor, ...], Saved | None]:
        """The outputs, cut from their graphs, and what the backward pass needs.

        Args:
            inputs: In the run's order.
            saved: Whether there is a backward pass to keep anything for. A co-sharded run never keeps anything.
            leave: Do not keep the weights: `return_weights` brings them.
            note: Told of every tensor that autograd keeps.
        """
        if self.parts > 1:
            with torch.no_grad():
                made = [chain(self._take(inputs, part)) for part, chain in enumerate(self._chains)]
            shares = zip(self._outputs, zip(*made, strict=True), strict=True)
            return tuple(share.join(values) for share, values in shares), None
        if not saved:
            with torch.no_grad():
                return self._chains[0](inputs), None
        leaves = self._leaves(inputs)
        kept = Saved(leaves, ())
        if not leave and note is None:
            kept.outputs = self._chains[0](leaves)
        else:
            kept.weights = {place: leaves[place] for place in self.weights} if leave else {}
            with _keeping(kept.weights, note):
                kept.outputs = self._chains[0](leaves)
        outputs = tuple(value.detach() for value in kept.outputs)
        if leave:
            for place in self.weights:
                leaves[place].data = leaves[place].new_empty(0)
            kept.weights.clear()
        return outputs, kept

    def return_weights(self, saved: Saved, weights: Mapping[int, Tensor]) -> None:
        """Bring weights that were not kept, before a backward pass: number of the input -> value."""
        if saved.weights is not None:
            for place, value in weights.items():
                saved.inputs[place].data = value
            saved.weights.update(weights)

    def backward(self, saved: Saved, gradients: tuple[Tensor | None, ...], what: Half) -> tuple[Tensor, ...]:
        """The gradients that a kind of backward pass yields, from those of the outputs (None: it has none)."""
        half = self.halves[what]
        if self.parts > 1:
            yielded = [self._part(saved.inputs, gradients, part, half) for part in range(self.parts)]
            shares = [self._gradients[number] for number in half]
            return tuple(share.join(values) for share, values in zip(shares, zip(*yielded, strict=True), strict=True))
        saved.gradients = gradients
        return self._differentiate(saved.inputs, saved.outputs, gradients, half, keep=what == "inputs")

    def _part(
        self, inputs: tuple[Tensor, ...], gradients: tuple[Tensor | None, ...], part: int, half: tuple[int, ...]
    ) -> tuple[Tensor, ...]:
        leaves = self._leaves(self._take(inputs, part))
        own = tuple(
            None if gradient is None else share.take(gradient, part, self.parts)
            for share, gradient in zip(self._outputs, gradients, strict=True)
        )
        return self._differentiate(leaves, self._chains[part](leaves), own, half)

    def _take(self, inputs: tuple[Tensor, ...], part: int) -> tuple[Tensor, ...]:
        return tuple(share.take(value, part, self.parts) for share, value in zip(self._inputs, inputs, strict=True))

    def _leaves(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        leaves = list(inputs)
        for number in self.weights:
            leaves[number] = leaves[number].detach()
        for number in self.differentiated:
            leaves[number] = leaves[number].detach().requires_grad_()
        return tuple(leaves)

    def _differentiate(
        self,
        leaves: tuple[Tensor, ...],
        outputs: tuple[Tensor, ...],
        gradients: tuple[Tensor | None, ...],
        half: tuple[int, ...],
        keep: bool = False,
    ) -> tuple[Tensor, ...]:
        pairs = [(o, g) for o, g in zip(outputs, gradients, strict=True) if g is not None and o.requires_grad]
        wanted = [leaves[self.differentiated[number]] for number in half]
        if not wanted:
            return ()
        if not pairs:
            return tuple(torch.zeros_like(leaf) for leaf in wanted)
        return torch.autograd.grad(
            [output for output, _ in pairs],
            wanted,
            [gradient for _, gradient in pairs],
            retain_graph=keep,
            allow_unused=True,
            materialize_grads=True,
        )


class Chain:
    """The operators of a run for one part, in order."""

    def __init__(self, graph: Graph, run: Run, place: tuple[int, ...]) -> None:
        slots: dict[str, int] = {}
        for tensor, _, _ in run.inputs:
            if tensor in slots:
                raise HarnessError(f"run {run.number} reads {tensor!r} in two layouts; a run reads a tensor in one")
            slots[tensor] = len(slots)
        self._calls = _calls(graph, run, place, slots)
        missing = [tensor for tensor, _, _ in run.outputs if tensor not in slots]
        if missing:
            raise HarnessError(f"run {run.number} is to yield {missing[0]!r}, which none of its operators makes")
        self._made = [None] * (len(slots) - len(run.inputs))
        self._outputs = tuple(slots[tensor] for tensor, _, _ in run.outputs)

    def __call__(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The outputs, from the inputs in the run's order."""
        values: list[Tensor | None] = [*inputs, *self._made]
        for compute, op, reads, parts, writes, last in self._calls:
            for slot, made in zip(writes, compute(op, [values[slot] for slot in reads], parts), strict=True):
                values[slot] = made
            for slot in last:
                values[slot] = None
        return tuple(values[slot] for slot in self._outputs)  # type: ignore[misc]


def _keeping(weights: dict[int, Tensor], note: Callable[[Tensor], None] | None) -> saved_tensors_hooks:
    """Let autograd keep the place of what is a view of a weight, instead of its memory.

    Args:
        weights: Number of the input -> weight; looked at again when a saved tensor is used.
        note: Told of every other tensor that is kept.
    """
    places = {value.untyped_storage().data_ptr(): place for place, value in weights.items()}

    def pack(value: Tensor) -> Tensor | tuple[int, Sequence[int], Sequence[int], int]:
        place = places.get(value.untyped_storage().data_ptr())
        if place is None:
            if note is not None:
                note(value)
            return value
        offset = value.storage_offset() - weights[place].storage_offset()
        return place, value.shape, value.stride(), offset

    def unpack(packed: Tensor | tuple[int, Sequence[int], Sequence[int], int]) -> Tensor:
        if isinstance(packed, torch.Tensor):
            return packed
        place, shape, stride, offset = packed
        weight = weights[place].detach()
        return weight.as_strided(shape, stride, weight.storage_offset() + offset)

    return saved_tensors_hooks(pack, unpack)


def _calls(graph: Graph, run: Run, place: tuple[int, ...], slots: dict[str, int]) -> tuple[Call, ...]:
    kept = {tensor for tensor, _, _ in run.outputs}
    ops = [graph.by_name[name] for name in run.ops]
    last_use: dict[str, int] = {}
    for number, op in enumerate(ops):
        last_use.update(dict.fromkeys((*op.inputs, *op.outputs), number))
    calls = []
    for number, op in enumerate(ops):
        absent = [tensor for tensor in op.inputs if tensor not in slots]
        if absent:
            raise HarnessError(
                f"run {run.number}: operator {op.name!r} reads {absent[0]!r}, which is no input of the run and made by"
                " none of its earlier operators"
            )
        inputs = tuple(slots[tensor] for tensor in op.inputs)
        for tensor in op.outputs:
            slots[tensor] = len(slots)
        outputs = tuple(slots[tensor] for tensor in op.outputs)
        touched = dict.fromkeys((*op.inputs, *op.outputs))
        last = tuple(slots[tensor] for tensor in touched if last_use[tensor] == number and tensor not in kept)
        parts = parts_of(run.mesh, run.splits.get(op.name, ()), place)
        calls.append(Call(find(op.target).compute, op, inputs, parts, outputs, last))
    return tuple(calls)


def parts_of(mesh: Mesh, splits: Sequence[str], place: Sequence[int]) -> dict[str, Part]:
    """Which part of an operator is done at a place: identifier -> part; axes of one identifier go major first."""
    degrees = (*mesh.shape, mesh.sequential)
    parts: dict[str, Part] = {}
    for axis, name in enumerate(splits):
        if name:
            index, degree = parts.get(name, (0, 1))
            parts[name] = Part(index * degrees[axis] + place[axis], degree * degrees[axis])
    return parts


class Share(NamedTuple):
    """How a tensor of a co-sharded run is divided among the sequential parts."""

    dim: int | None
    """Divided along it; None: not divided."""
    partial: bool
    """Parts hold addends."""
    reduction: str

    @classmethod
    def of(cls, layout: Layout) -> Share:
        """The share of a layout's sequential axis."""
        axis = len(layout.mesh.shape)
        dim = next((number for number, axes in enumerate(layout.dims) if axis in axes), None)
        if dim is not None and layout.dims[dim][-1] != axis:
            raise HarnessError("the sequential axis must be the innermost of those that split a dim")
        return cls(dim, axis in layout.partial, layout.reduction)

    def take(self, value: Tensor, part: int, parts: int) -> Tensor:
        """One part of what the rank holds."""
        if self.dim is None:
            return value
        length = value.shape[self.dim] // parts
        return value.narrow(self.dim, part * length, length)

    def join(self, values: Sequence[Tensor]) -> Tensor:
        """What the rank holds, of its parts."""
        if self.dim is not None:
            return torch.cat(tuple(values), self.dim)
        if not self.partial:
            return values[0]
        return combine(values, self.reduction)


def combine(values: Sequence[Tensor], reduction: str) -> Tensor:
    """Addends combined, in their order; a new tensor if there are several."""
    total = values[0]
    for value in values[1:]:
        total = total + value if reduction == "sum" else torch.maximum(total, value)
    return total
