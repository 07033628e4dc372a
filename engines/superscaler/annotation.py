"""What may be split: one line per operator, like an einsum.

``* k+, n k+ -> * n`` says of a linear layer that its tensors have dims named `k`, `n` and whatever leads. Splitting an
operator on an identifier `x` into d parts means (nnScaler, OSDI 2024, op-trans):

* every tensor that has `x` is split along that dim;
* an input that lacks `x` is given to every part, and its *gradient* comes in d addends (`Partial`);
* an output that lacks `x` comes in d addends itself (identifiers with a reduction, written `k+`).

Not splitting means that every device does all of it: then everything, gradients too, is equal on all of them.

Notation: identifiers separated by blanks, tensors by commas; `x^` may not be split; `x+` may be split although no
output has it, outputs are then sums (`x|max`: maxima) of the parts; `(a b)` is one dim that fuses two, of which only
the outermost can be split; `*` is any number of leading dims, the same ones in every tensor that has it; `1` is a dim
of size one; `?` is an argument that is not a tensor.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

Reduction = Literal["sum", "max"]
Dim = tuple[str, ...]
"""Identifiers fused into one dim of a tensor, outermost first; empty for a dim of size one."""


@dataclass(frozen=True)
class Annotation:
    """An annotation resolved for one operator: every dim of every tensor has its identifiers and their sizes."""

    inputs: tuple[tuple[Dim, ...], ...]
    outputs: tuple[tuple[Dim, ...], ...]
    sizes: Mapping[str, int]
    """Of every identifier."""
    frozen: frozenset[str] = frozenset()
    """Identifiers that may not be split."""
    reductions: Mapping[str, Reduction] = field(default_factory=dict)
    """Identifiers that outputs lack: how the parts of an output combine."""

    def splittable(self) -> tuple[str, ...]:
        """Identifiers that the operator can be split on, in order of first appearance."""
        seen: dict[str, None] = {}
        for tensor in (*self.inputs, *self.outputs):
            for dim in tensor:
                for place, name in enumerate(dim):
                    if place == 0 and name not in self.frozen and self.sizes[name] > 1:
                        seen.setdefault(name)
        # One that is fused behind another anywhere cannot be split: its parts would not be contiguous.
        inner = {name for tensor in (*self.inputs, *self.outputs) for dim in tensor for name in dim[1:]}
        return tuple(name for name in seen if name not in inner)

    def input_dim(self, number: int, name: str) -> int | None:
        """The dim of an input that splitting on `name` splits; None if the input lacks it."""
        return _dim(self.inputs[number], name)

    def output_dim(self, number: int, name: str) -> int | None:
        """The same of an output."""
        return _dim(self.outputs[number], name)


def _dim(dims: tuple[Dim, ...], name: str) -> int | None:
    return next((place for place, dim in enumerate(dims) if dim[:1] == (name,)), None)
