"""Entries of the operator table, and how they are found.

An entry is a `Definition`: an annotation (or a function that writes one for the shapes at hand), a function that
computes a part, and one that says what a part costs. `register` adds a user's own.
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from engines.superscaler.annotation import Annotation, AnnotationError, parse, resolve
from engines.superscaler.operators.cost import Sizes, Work, plain
from engines.superscaler.operators.shapes import line
from harness.api import PlanError, nearest

if TYPE_CHECKING:
    import torch

    from engines.superscaler.graph import Op, Tensor
    from engines.superscaler.operators import Part

Shape = tuple[int, ...]
_TABLE: dict[str, Definition] = {}
_MODULES = ("elementwise", "products", "normalization", "attention", "layout", "reductions", "lookup", "convolution")


class OperatorError(PlanError):
    """An operator that the table does not have, or that cannot be done the way it is called."""


@dataclass(frozen=True)
class Call:
    """An operator as the model calls it, before it has an annotation."""

    inputs: tuple[Shape, ...]
    outputs: tuple[Shape, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    differentiable: bool = True
    """Whether a gradient flows through it."""


@dataclass(frozen=True)
class Local:
    """One part of an operator, to be computed."""

    op: Op
    inputs: Sequence[torch.Tensor]
    parts: Mapping[str, Part]

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute, of the whole."""
        return self.op.attributes.get(name, default)

    def shape(self, number: int = 0) -> Shape:
        """Shape of this part of an output."""
        return self.op.annotation.output_shape(number, {name: part.degree for name, part in self.parts.items()})

    def length(self, name: str) -> int:
        """How much of an identifier this part has."""
        part = self.parts.get(name)
        return self.op.annotation.sizes[name] // (part.degree if part else 1)

    def start(self, name: str) -> int:
        """Where this part begins within the whole, along an identifier."""
        part = self.parts.get(name)
        return part.index * self.length(name) if part else 0

    def first(self, *names: str) -> bool:
        """Whether this is the part with index 0 along all of these identifiers: the one that adds a bias."""
        return all(self.parts[name].index == 0 for name in names if name in self.parts)


Annotate = Callable[[Call], "str | tuple[str, Mapping[str, int]]"]
Apply = Callable[[Local], "torch.Tensor | tuple[torch.Tensor, ...]"]


@dataclass(frozen=True)
class Definition:
    """An entry of the table."""

    target: str
    annotate: str | Annotate
    apply: Apply
    cost: Callable[[Sizes], Work] = plain

    def annotation(self, call: Call, op: str = "") -> Annotation:
        """The annotation for these shapes.

        Raises:
            AnnotationError: it does not fit them.
            OperatorError: the operator cannot be done the way it is called.
        """
        written = self.annotate if isinstance(self.annotate, str) else self.annotate(call)
        text, sizes = (written, {}) if isinstance(written, str) else written
        try:
            return _resolve(text, call.inputs, call.outputs, tuple(sorted(sizes.items())))
        except AnnotationError as error:
            raise AnnotationError(f"operator {op or self.target!r}: {error}") from error

    def compute(self, op: Op, inputs: Sequence[torch.Tensor], parts: Mapping[str, Part]) -> tuple[torch.Tensor, ...]:
        """The outputs of one part; see `operators.Operator`."""
        if op.attributes.get("no_grad"):
            import torch

            with torch.no_grad():
                made = self.apply(Local(op, inputs, parts))
        else:
            made = self.apply(Local(op, inputs, parts))
        return made if isinstance(made, tuple) else (made,)

    def work(self, op: Op, tensors: Mapping[str, Tensor], degrees: Mapping[str, int]) -> Work:
        """Cost of one part; see `operators.Operator`."""
        return self.cost(Sizes(op, tensors, degrees))


@lru_cache(maxsize=4096)
def _resolve(
    text: str, inputs: tuple[Shape, ...], outputs: tuple[Shape, ...], sizes: tuple[tuple[str, int], ...]
) -> Annotation:
    return resolve(text, inputs, outputs, sizes=dict(sizes))


def define(target: str, annotation: str | Annotate, apply: Apply, cost: Callable[[Sizes], Work] = plain) -> Definition:
    """Add an entry of the engine's own."""
    _TABLE[target] = Definition(target, annotation, apply, cost)
    return _TABLE[target]


def register(
    target: str,
    annotation: str | Annotate,
    *,
    compute: Apply | None = None,
    cost: Callable[[Sizes], Work] = plain,
    replace: bool = False,
) -> Definition:
    """Add an operator of your own to the table, for every trace from now on.

    Args:
        target: what the model calls: a name of aten (`aten.cumsum`, or `cumsum`) or of a library of your own
            (`mylib::scaled_tanh`, made with `torch.library.custom_op`).
        annotation: one line (see `engines.superscaler.annotation`), or a function from a `Call` to one.
        compute: a part from its parts of the inputs; by default the operator itself is called on them, which is right
            wherever no attribute has to change with the size of the part.
        cost: what a part costs; by default its bytes are read and written once, forward and backward.
        replace: allow an entry of this name to be replaced.

    Raises:
        OperatorError: the table has an entry of this name.
        AnnotationError: the line cannot be read.
    """
    name = key(target)
    _load()
    if name in _TABLE and not replace:
        raise OperatorError(f"operator {name!r} has an entry already; to change it, say replace=True")
    if isinstance(annotation, str):
        parse(annotation)
    return define(name, annotation, compute or called(target), cost)


def key(target: str) -> str:
    """The table's name for what a model calls: `aten.gelu.default` -> `gelu`, `mylib::foo` -> `mylib.foo`."""
    words = target.replace("::", ".").split(".")
    return words[1] if words[0] == "aten" and len(words) > 1 else ".".join(words[:2])


def called(target: str) -> Apply:
    """Compute a part by calling the operator itself, with the attributes it was traced with."""
    name = key(target)
    space, packet = name.split(".") if "." in name else ("aten", name)

    def apply(local: Local) -> torch.Tensor | tuple[torch.Tensor, ...]:
        import torch

        overload = getattr(getattr(getattr(torch.ops, space), packet), local.get("overload", "default"))
        left = list(local.inputs)
        arguments: dict[str, Any] = {}
        for argument in overload._schema.arguments:
            kind = str(argument.type)
            if argument.name in local.op.attributes:
                arguments[argument.name] = local.op.attributes[argument.name]
            elif "Tensor[]" in kind or "List[Tensor]" in kind:
                arguments[argument.name], left = left, []
            elif "Tensor" in kind and left:
                arguments[argument.name] = left.pop(0)
        made = overload(**arguments)
        return tuple(made) if isinstance(made, list | tuple) else made

    return apply


REPLICATED = "replicate:"
"""Before the name of an operator that every device does all of, because the user said so when tracing."""


def whole(call: Call) -> tuple[str, Mapping[str, int]]:
    """The annotation of an operator that cannot be split."""
    count = itertools.count()
    sides = ([[f"r{next(count)}^" for _ in shape] for shape in side] for side in (call.inputs, call.outputs))
    return line(*sides), {}


def find(target: str) -> Definition:
    """The entry of an operator.

    Raises:
        OperatorError: there is none; names the nearest.
    """
    if target.startswith(REPLICATED):
        return Definition(target, whole, called(target.removeprefix(REPLICATED)))
    _load()
    if target not in _TABLE:
        close = nearest(target, _TABLE)
        hint = f"; nearest is {close!r}" if close else ""
        raise OperatorError(f"the operator table has no {target!r}{hint}; add one with operators.register(...)")
    return _TABLE[target]


def targets() -> tuple[str, ...]:
    """All operators that have an entry, sorted."""
    _load()
    return tuple(sorted(_TABLE))


@lru_cache(maxsize=1)
def _load() -> None:
    """Entries are defined by the modules of this package when they are imported."""
    for module in _MODULES:
        importlib.import_module(f"engines.superscaler.operators.{module}")
