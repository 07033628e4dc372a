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
of size one; `?` is an argument that is not a tensor. Nothing before `->` is an operator that is given no tensor;
nothing behind it is a scalar.

`resolve` turns the line into an `Annotation` for the shapes at hand. Leading dims are called `*0`, `*1`, ... there.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

from harness.api import PlanError, nearest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

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

    def input_shape(self, number: int, degrees: Mapping[str, int] | None = None) -> tuple[int, ...]:
        """Shape of an input, or of a part of it where identifiers are split into `degrees`."""
        return self._shape(self.inputs[number], degrees or {})

    def output_shape(self, number: int, degrees: Mapping[str, int] | None = None) -> tuple[int, ...]:
        """The same of an output."""
        return self._shape(self.outputs[number], degrees or {})

    def _shape(self, dims: tuple[Dim, ...], degrees: Mapping[str, int]) -> tuple[int, ...]:
        return tuple(math.prod(self.sizes[name] // degrees.get(name, 1) for name in dim) for dim in dims)

    def __str__(self) -> str:
        """The line that says the same, leading dims spelled out."""
        sides = (", ".join(" ".join(map(self._written, dims)) for dims in side) for side in (self.inputs, self.outputs))
        return " -> ".join(sides).strip()

    def _written(self, dim: Dim) -> str:
        words = [name + self._suffix(name) for name in dim]
        return "1" if not words else words[0] if len(words) == 1 else f"({' '.join(words)})"

    def _suffix(self, name: str) -> str:
        if name in self.frozen:
            return "^"
        reduction = self.reductions.get(name)
        return "" if reduction is None else "+" if reduction == "sum" else f"|{reduction}"

    def input_dim(self, number: int, name: str) -> int | None:
        """The dim of an input that splitting on `name` splits; None if the input lacks it."""
        return _dim(self.inputs[number], name)

    def output_dim(self, number: int, name: str) -> int | None:
        """The same of an output."""
        return _dim(self.outputs[number], name)


def _dim(dims: tuple[Dim, ...], name: str) -> int | None:
    return next((place for place, dim in enumerate(dims) if dim[:1] == (name,)), None)


class AnnotationError(PlanError):
    """An annotation that cannot be read, or that does not fit the tensors of an operator."""


class Signature(NamedTuple):
    """An annotation as written: tensors of dims of identifiers, before shapes are known."""

    inputs: tuple[tuple[Dim, ...], ...]
    outputs: tuple[tuple[Dim, ...], ...]
    frozen: frozenset[str]
    reductions: Mapping[str, Reduction]


LEADING = "*"
_NAME = re.compile(r"(?P<name>[A-Za-z_]\w*)(?P<suffix>\^|\+|\|\w+)?")
_SUFFIXES = ("^", "+", "|max", "|sum")


def parse(text: str) -> Signature:
    """Read an annotation.

    Raises:
        AnnotationError: a token that the notation does not have, or an identifier whose suffixes contradict each other
            or the outputs.
    """
    sides = text.split("->")
    if len(sides) != 2:
        raise AnnotationError(
            f"annotation {text!r}: expected one '->' between inputs and outputs, found {len(sides) - 1}"
        )
    suffixes: dict[str, str] = {}
    inputs, outputs = (_tensors(side, suffixes, text) for side in sides)
    outputs = outputs or ((),)
    frozen = frozenset(name for name, suffix in suffixes.items() if suffix == "^")
    reductions: dict[str, Reduction] = {
        name: "max" if suffix == "|max" else "sum" for name, suffix in suffixes.items() if suffix not in ("", "^")
    }
    lacking = _lacking(inputs, outputs)
    for name in suffixes:
        if name in reductions and name not in lacking:
            raise AnnotationError(f"annotation {text!r}: {name!r} is summed, yet every output has it; write {name!r}")
        if name in lacking and name not in reductions and name not in frozen:
            choices = f"'{name}+' (outputs are sums of parts), '{name}|max' or '{name}^' (not to be split)"
            raise AnnotationError(f"annotation {text!r}: an output lacks {name!r}; write {choices}")
    return Signature(inputs, outputs, frozen, reductions)


def _tensors(side: str, suffixes: dict[str, str], text: str) -> tuple[tuple[Dim, ...], ...]:
    found = []
    for words in side.split(",") if side.strip() else ():
        if words.strip() == "?":
            continue
        dims = _dims(words, suffixes, text)
        names = [name for dim in dims for name in dim]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise AnnotationError(f"annotation {text!r}: {twice[0]!r} stands twice in one tensor ({words.strip()!r})")
        found.append(dims)
    return tuple(found)


def _dims(words: str, suffixes: dict[str, str], text: str) -> tuple[Dim, ...]:
    dims: list[Dim] = []
    fused: list[str] | None = None
    for token in words.replace("(", " ( ").replace(")", " ) ").split():
        if token == "(" and fused is None:
            fused = []
        elif token == ")" and fused:
            dims.append(tuple(fused))
            fused = None
        elif token == "1" and fused is None:
            dims.append(())
        elif token in (LEADING, "*^") and fused is None:
            _note(suffixes, LEADING, token[1:], text)
            dims.append((LEADING,))
        elif match := _NAME.fullmatch(token):
            suffix = match["suffix"] or ""
            if suffix and suffix not in _SUFFIXES:
                close = nearest(suffix, _SUFFIXES) or "^, + or |max"
                raise AnnotationError(f"annotation {text!r}: no suffix {suffix!r} in {token!r}; nearest is {close!r}")
            _note(suffixes, match["name"], suffix, text)
            if fused is None:
                dims.append((match["name"],))
            else:
                fused.append(match["name"])
        else:
            legal = "an identifier with or without ^, + or |max, '1', '*', '?', '(' or ')'"
            raise AnnotationError(f"annotation {text!r}: cannot read {token!r} in {words.strip()!r}; expected {legal}")
    if fused is not None:
        raise AnnotationError(f"annotation {text!r}: a '(' is not closed in {words.strip()!r}")
    return tuple(dims)


def _note(suffixes: dict[str, str], name: str, suffix: str, text: str) -> None:
    suffix = "+" if suffix == "|sum" else suffix
    known = suffixes.setdefault(name, suffix)
    if known and suffix and known != suffix:
        raise AnnotationError(f"annotation {text!r}: {name!r} is written both {name + known!r} and {name + suffix!r}")
    if suffix:
        suffixes[name] = suffix


def _lacking(inputs: Sequence[tuple[Dim, ...]], outputs: Sequence[tuple[Dim, ...]]) -> set[str]:
    """Identifiers that some output lacks."""
    everything = {name for tensor in (*inputs, *outputs) for dim in tensor for name in dim}
    return {name for name in everything for tensor in outputs if all(name not in dim for dim in tensor)}


def resolve(
    text: str,
    inputs: Sequence[tuple[int, ...]],
    outputs: Sequence[tuple[int, ...]],
    *,
    sizes: Mapping[str, int] | None = None,
) -> Annotation:
    """The annotation of one operator, for the shapes of its tensors.

    Args:
        text: as the module's docstring says.
        inputs: shapes of the tensors it reads, in the order of the annotation.
        outputs: shapes of those it makes.
        sizes: of identifiers that shapes alone do not tell (both sides of a fused dim).

    Raises:
        AnnotationError: unreadable, or it does not fit the shapes: says which tensor, and what was expected.
    """
    signature = parse(text)
    said = f"annotation {text!r}"
    known = dict(sizes or {})
    # A lone scalar is written like nothing at all.
    given = ((),) if not signature.inputs and len(inputs) == 1 else signature.inputs
    placed: list[list[tuple[Dim, ...]]] = []
    todo: list[tuple[Dim, int, str]] = []
    lead: int | None = None
    for what, written, shapes in (("input", given, inputs), ("output", signature.outputs, outputs)):
        if len(written) != len(shapes):
            raise AnnotationError(f"{said}: it has {len(written)} {what}s, the operator {len(shapes)}: {list(shapes)}")
        side = []
        for number, (dims, shape) in enumerate(zip(written, shapes, strict=True)):
            where = f"{what} {number} of shape {tuple(shape)}"
            dims, lead = _spread(dims, len(shape), lead, f"{said}: {where}")
            side.append(dims)
            todo += [(dim, size, where) for dim, size in zip(dims, shape, strict=True)]
        placed.append(side)
    _solve(todo, known, said)
    names = {name for side in placed for tensor in side for dim in tensor for name in dim}
    frozen = {name for name in names if name in signature.frozen}
    if LEADING in signature.frozen:
        frozen |= {name for name in names if name.startswith(LEADING)}
    return Annotation(
        inputs=tuple(placed[0]),
        outputs=tuple(placed[1]),
        sizes={name: known[name] for name in sorted(names)},
        frozen=frozenset(frozen),
        reductions={name: how for name, how in sorted(signature.reductions.items()) if name in names},
    )


def _spread(dims: tuple[Dim, ...], rank: int, lead: int | None, where: str) -> tuple[tuple[Dim, ...], int | None]:
    """Write `*` out as that many leading dims."""
    if (LEADING,) not in dims:
        if len(dims) != rank:
            raise AnnotationError(f"{where} has {rank} dims, the annotation {len(dims)}")
        return dims, lead
    count = rank - (len(dims) - 1)
    if count < 0 or (lead is not None and count != lead):
        expected = f"{lead} leading dims, as in the tensors before" if count >= 0 else f"at least {len(dims) - 1} dims"
        raise AnnotationError(f"{where} has {rank} dims; expected {expected}")
    place = dims.index((LEADING,))
    spread = tuple((f"{LEADING}{number}",) for number in range(count))
    return (*dims[:place], *spread, *dims[place + 1 :]), count


def _solve(todo: list[tuple[Dim, int, str]], known: dict[str, int], said: str) -> None:
    """Find every identifier's size; fused dims follow once all but one of their identifiers are known."""
    while todo:
        left = []
        for dim, size, where in todo:
            unknown = [name for name in dim if name not in known]
            if len(unknown) > 1:
                left.append((dim, size, where))
                continue
            rest = math.prod(known[name] for name in dim if name in known)
            if unknown and rest and size % rest == 0:
                known[unknown[0]] = size // rest
            elif rest != size:
                parts = " * ".join(f"{name}={known.get(name, '?')}" for name in dim) or "1"
                raise AnnotationError(f"{said}: {where}: a dim of {size} does not fit {parts}")
        if len(left) == len(todo):
            dim, size, where = left[0]
            raise AnnotationError(f"{said}: {where}: {size} = {' * '.join(dim)} has more than one answer; give sizes")
        todo = left
