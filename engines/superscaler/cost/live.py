"""Costs of operators timed on this machine: one part of each, forward and backward, the median of a few runs.

What was timed is kept in a file, which is then a recorded profile (`recorded`). Communication cannot be timed on one
machine and comes from elsewhere, said explicitly. What autograd keeps is the operator table's statement: time is
measured, memory is counted.
"""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Any, ClassVar

from engines.superscaler.cost.recorded import Recorded, cost_of, key_of, read, write
from engines.superscaler.operators import Part, find

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import torch

    from engines.superscaler.cost import Costs, OperatorCost, Source
    from engines.superscaler.graph import Graph, Op

REPEATS = 5
"""Runs whose median counts, after one that warms up."""


class Live(Recorded):
    """Times what the file does not have yet.

    Args:
        path: of the file; it grows with `save`.
        network: where costs of communication, updates and memory come from.
        device: torch's name of what is timed.
        clock: seconds, for tests.
    """

    source: ClassVar[Source] = "live"

    def __init__(
        self, path: Path, network: Costs, *, device: str = "cpu", clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._path, self._device, self._clock = path, device, clock
        self._timed: dict[str, dict[str, Any]] = read(path)
        super().__init__(self._timed, network)

    def operator(self, graph: Graph, op: Op, degrees: Mapping[str, int]) -> OperatorCost:
        """See `Costs.operator`: timed when first asked for."""
        key = key_of(graph, op, degrees)
        if key not in self._timed:
            self._timed[key] = self._time(graph, op, degrees)
        return cost_of(op, self._timed[key])

    def save(self) -> Recorded:
        """Write the file; returns what it holds as recorded costs, whose digest says so."""
        write(self._path, self._timed)
        return Recorded(read(self._path), self._network)

    def _time(self, graph: Graph, op: Op, degrees: Mapping[str, int]) -> dict[str, Any]:
        work = find(op.target).work(op, graph.tensors, degrees)
        own = (*op.inputs, *op.outputs)
        wanted = any(graph.tensors[name].requires_grad for name in op.outputs)
        forward = backward = 0.0
        if work.flops or work.nbytes:
            forward, backward = self._run(graph, op, degrees, wanted=wanted)
        return {
            "target": op.target,
            "degrees": {name: count for name, count in sorted(degrees.items()) if count > 1},
            "forward": forward,
            "backward": backward,
            "saved": [own.index(name) for name in work.saved] if wanted else [],
            "saved_extra": work.saved_extra if wanted else 0,
            "workspace": work.workspace,
        }

    def _run(self, graph: Graph, op: Op, degrees: Mapping[str, int], *, wanted: bool) -> tuple[float, float]:
        import torch

        operator = find(op.target)
        inputs = [self._input(graph, op, number, degrees) for number in range(len(op.inputs))]
        parts = {name: Part(0, count) for name, count in degrees.items() if count > 1}
        forwards, backwards = [], []
        for _ in range(REPEATS + 1):
            began = self._now()
            outputs = operator.compute(op, inputs, parts)
            forwards.append(self._now() - began)
            ends = [one for one in outputs if one.requires_grad]
            if not wanted or not ends:
                continue
            leaves = [one for one in inputs if one.requires_grad]
            gradients = [torch.ones_like(one) for one in ends]
            began = self._now()
            torch.autograd.grad(ends, leaves, gradients, allow_unused=True)
            backwards.append(self._now() - began)
        return statistics.median(forwards[1:]), statistics.median(backwards[1:]) if backwards else 0.0

    def _input(self, graph: Graph, op: Op, number: int, degrees: Mapping[str, int]) -> torch.Tensor:
        import torch

        from engines.superscaler.operators.dtypes import torch_dtype

        tensor, note = graph.tensors[op.inputs[number]], op.annotation
        shape = []
        for size, dim in zip(tensor.shape, note.inputs[number], strict=True):
            shape.append(size // degrees.get(dim[0], 1) if dim else size)
        dtype = torch_dtype(torch, tensor.dtype)
        if not dtype.is_floating_point:
            return torch.zeros(shape, dtype=dtype, device=self._device)
        made = torch.ones(shape, dtype=dtype, device=self._device)
        return made.requires_grad_(tensor.requires_grad)

    def _now(self) -> float:
        if self._device != "cpu":
            import torch

            torch.cuda.synchronize(self._device)
        return self._clock()
