"""The model as data: a graph of annotated operators over tensors of known shape.

`trace` makes one from an unmodified `torch.nn.Module`; the three phases work on nothing else, and need no torch. The
graph is the model on one device, for one micro-batch: forward only, because what an operator's gradients look like on
several devices follows from its annotation (see `annotation`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from harness.api import digest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engines.superscaler.annotation import Annotation

Role = Literal["input", "parameter", "buffer", "activation"]
BYTES: Mapping[str, int] = {"fp64": 8, "fp32": 4, "fp16": 2, "bf16": 2, "int64": 8, "int32": 4, "bool": 1, "uint8": 1}
"""Of one element of each dtype."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """A full tensor (the paper's pTensor): what the model names, before anybody divides it."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    role: Role
    requires_grad: bool
    """Whether a gradient flows to it: parameters, and activations that depend on one and are not cut by `detach`."""

    @property
    def elements(self) -> int:
        """How many numbers; 1 for a scalar."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole tensor."""
        return self.elements * BYTES[self.dtype]


@dataclass(frozen=True)
class Op:
    """One operator, applied to whole tensors."""

    name: str
    """Unique in its graph and the same for every trace of the same model (`layers.3.attention.qkv`, `gelu_3`)."""
    target: str
    """Key of the operator table: `linear`, `layer_norm`."""
    inputs: tuple[str, ...]
    """Tensors read, in the order of the annotation."""
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    """All that is not a tensor, with sizes of the whole (JSON values): the size of a view, the `eps` of a norm."""
    annotation: Annotation
    """Which dims may be split, and what happens then; resolved for these shapes."""
    module: str = ""
    """Qualified name of the module that calls it, empty for the root."""
    source: str = ""
    """`file.py:line` in the user's model."""


@dataclass(frozen=True)
class Graph:
    """A model for one micro-batch. Operators are in an order that respects data dependence."""

    name: str
    tensors: Mapping[str, Tensor]
    ops: tuple[Op, ...]
    inputs: tuple[str, ...]
    """Tensors of the batch that the model is given, in its order."""
    loss: str
    """A scalar, mean over the micro-batch; what is differentiated."""
    parameters: tuple[str, ...] = ()
    """Names of parameter tensors; equal to the qualified names of the module's (`layers.0.weight`), tied ones once."""
    digest: str = field(default="", compare=False)
    """SHA-256 of all of the above but where in its file an operator stands: part of every plan; see `fingerprint`."""

    def fingerprint(self) -> str:
        """The digest that belongs to this graph: moving a model's lines or renaming its file does not change it."""
        return digest(
            {
                "name": self.name,
                "tensors": [
                    [tensor.name, list(tensor.shape), tensor.dtype, tensor.role, tensor.requires_grad]
                    for tensor in self.tensors.values()
                ],
                "ops": [
                    [
                        *(op.name, op.target, list(op.inputs), list(op.outputs), dict(op.attributes)),
                        *(str(op.annotation), dict(op.annotation.sizes)),
                    ]
                    for op in self.ops
                ],
                "inputs": list(self.inputs),
                "loss": self.loss,
                "parameters": list(self.parameters),
            }
        )

    @cached_property
    def by_name(self) -> Mapping[str, Op]:
        """Operators by name."""
        return {op.name: op for op in self.ops}

    @cached_property
    def producer(self) -> Mapping[str, str]:
        """Operator that makes a tensor; inputs, parameters and buffers have none."""
        return {tensor: op.name for op in self.ops for tensor in op.outputs}

    @cached_property
    def consumers(self) -> Mapping[str, tuple[str, ...]]:
        """Operators that read a tensor, in order, each once."""
        found: dict[str, dict[str, None]] = {}
        for op in self.ops:
            for tensor in op.inputs:
                found.setdefault(tensor, {})[op.name] = None
        return {tensor: tuple(names) for tensor, names in found.items()}
