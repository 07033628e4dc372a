"""What a run comes to on a device: kernels, with the figures of the operator table.

A run is a list of operators, each split by so much. Forward it is one kernel for every operator that does anything (a
view does nothing); backward the same in reverse, as kernels of the family ``<family>-backward``, for operators that a
gradient flows through. Of a split backward pass (`inputs`, then `weights`), matrix products with a parameter halve: one
product gives the gradient of the input, the other that of the parameter; what has no parameter is all in `inputs`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from emulation.program import Part
from engines.superscaler import operators

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engines.superscaler.graph import Op, Tensor
    from engines.superscaler.operators import Work
    from engines.superscaler.precision import Precision
    from engines.superscaler.program import Program, Run

Parts = tuple[Part, ...]


class Kernels:
    """Kernels of a program's runs; computed when first asked for, then kept, so that equal work is the same object."""

    def __init__(self, program: Program, precision: Precision) -> None:
        self._runs = {run.number: run for run in program.runs}
        self._ops = program.graph.by_name
        self._precision = precision
        self._graph = program.graph
        self._works: dict[tuple[str, tuple[tuple[str, int], ...]], Work] = {}
        self._parts: dict[tuple[int, str, bool], Parts] = {}
        self._moved: dict[tuple[str, str, int], Part] = {}

    @cached_property
    def tensors(self) -> Mapping[str, Tensor]:
        """The graph's tensors, in the dtypes that are trained in."""
        of = self._precision.of
        return {
            name: tensor if of(tensor.dtype) == tensor.dtype else replace(tensor, dtype=of(tensor.dtype))
            for name, tensor in self._graph.tensors.items()
        }

    @cached_property
    def dtype(self) -> str:
        """In which the device computes what has no dtype of its own (comparisons, copies of indices)."""
        return self.tensors[self._graph.loss].dtype

    def of(self, run: int, what: str, *, again: bool = False) -> Parts:
        """Kernels of a pass of a run; with `again` a backward pass begins with the forward one."""
        key = (run, what, again)
        if key not in self._parts:
            self._parts[key] = self._pass(self._runs[run], what, again=again)
        return self._parts[key]

    def moved(self, family: str, nbytes: int, name: str) -> Part:
        """A kernel that only moves bytes."""
        key = (family, name, nbytes)
        if key not in self._moved:
            self._moved[key] = Part.compute(0.0, nbytes, dtype=self.dtype, family=family, name=name)
        return self._moved[key]

    def work(self, run: Run, op: Op) -> Work:
        """What one part of an operator costs when split as the run has it."""
        degrees = degrees_of(run, op)
        key = (op.name, tuple(sorted(degrees.items())))
        if key not in self._works:
            self._works[key] = operators.find(op.target).work(op, self.tensors, degrees)
        return self._works[key]

    def _pass(self, run: Run, what: str, *, again: bool) -> Parts:
        ops = [self._ops[name] for name in run.ops]
        forward = [part for op in ops if (part := self._forward(run, op))]
        if what == "forward":
            return tuple(forward) * run.mesh.sequential
        share = {"backward": "", "inputs": "inputs", "weights": "weights"}[what]
        back = [part for op in reversed(ops) if (part := self._backward(run, op, share))]
        # Co-shard: each piece forward again and backward before the next, so that only one is kept.
        recomputed = forward if (again or run.mesh.sequential > 1) and what != "weights" else []
        return (*recomputed, *back) * run.mesh.sequential

    def _forward(self, run: Run, op: Op) -> Part | None:
        work = self.work(run, op)
        if not work.flops and not work.nbytes:
            return None
        return self._part(op, work, work.flops, work.nbytes, work.family)

    def _backward(self, run: Run, op: Op, share: str) -> Part | None:
        tensors = self._graph.tensors
        if not any(tensors[name].requires_grad for name in op.outputs):
            return None
        work = self.work(run, op)
        wanted = [name for name in op.inputs if tensors[name].requires_grad]
        weights = [name for name in wanted if tensors[name].role == "parameter"]
        part = 1.0
        if share == "weights":
            part = 0.0 if not weights else 1.0 if len(weights) == len(wanted) else 0.5
        elif share == "inputs":
            part = 1.0 if not weights else 0.0 if len(weights) == len(wanted) else 0.5
        flops, nbytes = work.backward_flops * part, round(work.backward_nbytes * part)
        if not flops and not nbytes:
            return None
        return self._part(op, work, flops, nbytes, f"{work.family}-backward")

    def _part(self, op: Op, work: Work, flops: float, nbytes: int, family: str) -> Part:
        dtype = next((self.tensors[name].dtype for name in op.outputs if self._floats(name)), self.dtype)
        return Part.compute(flops, nbytes, dtype=dtype, family=family, shape=work.shape, name=op.name)

    def _floats(self, name: str) -> bool:
        return self.tensors[name].dtype in ("fp64", "fp32", "fp16", "bf16")


def degrees_of(run: Run, op: Op) -> dict[str, int]:
    """Into how many parts a run splits each identifier of an operator, sequential parts included."""
    degrees: dict[str, int] = {}
    for name, size in zip(run.splits[op.name], (*run.mesh.shape, run.mesh.sequential), strict=False):
        if name and size > 1:
            degrees[name] = degrees.get(name, 1) * size
    return degrees
