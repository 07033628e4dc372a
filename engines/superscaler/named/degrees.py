"""Into how many parts a named plan divides devices and batch, and what it says if that does not go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.api import PlanError

if TYPE_CHECKING:
    from engines.superscaler.graph import Graph


@dataclass(frozen=True)
class Degrees:
    """How devices are divided: replicas, pipeline groups, tensor-parallel neighbours."""

    data: int
    pipeline: int
    tensor: int

    @property
    def size(self) -> int:
        """Devices in all."""
        return self.data * self.pipeline * self.tensor

    def group(self, devices: tuple[int, ...], place: int) -> tuple[int, ...]:
        """Devices of one pipeline group; tensor-parallel neighbours next to each other, as Megatron-LM has them."""
        size = self.data * self.tensor
        return devices[place * size : (place + 1) * size]

    @property
    def axes(self) -> dict[str, int]:
        """The box that each group is."""
        return {"data": self.data, "tensor": self.tensor}


def degrees(name: str, devices: int, main: str, data: int, pipeline: int, tensor: int) -> Degrees:
    """Degrees from those that were given (0: not given); the plan's main one takes what is left.

    Raises:
        PlanError: they do not make up the devices; says the nearest that do.
    """
    given = {"data": data, "pipeline": pipeline, "tensor": tensor}
    rest = 1
    for axis, degree in given.items():
        if degree < 0:
            raise PlanError(f"plan {name!r}: {axis} is {degree}; expected at least 1")
        rest *= degree or 1
    if devices % rest:
        divisors = [d for d in range(1, devices + 1) if devices % d == 0]
        close = min(divisors, key=lambda d: (abs(d - rest), d))
        raise PlanError(
            f"plan {name!r}: degrees {_said(given)} make {rest}, which does not divide {devices} devices;"
            f" the nearest product that does is {close}"
        )
    if not given[main]:
        given[main] = devices // rest
    chosen = {axis: degree or 1 for axis, degree in given.items()}
    found = Degrees(**chosen)
    if found.size != devices:
        raise PlanError(
            f"plan {name!r}: degrees {_said(chosen)} use {found.size} of {devices} devices;"
            f" {main} {chosen[main] * devices // found.size} would use all"
        )
    return found


def _said(given: dict[str, int]) -> str:
    return " x ".join(f"{axis} {degree}" for axis, degree in given.items() if degree)


def batch_inputs(name: str, graph: Graph, data: int) -> dict[str, int]:
    """Inputs of the batch that replicas divide -> along which dim.

    Raises:
        PlanError: the samples of a micro-batch do not divide.
    """
    leading = [graph.tensors[tensor].shape[0] for tensor in graph.inputs if graph.tensors[tensor].shape]
    if not leading:
        raise PlanError(f"plan {name!r}: the model has no input with a batch to divide over replicas")
    if leading[0] % data:
        allowed = ", ".join(str(d) for d in range(1, leading[0] + 1) if leading[0] % d == 0)
        raise PlanError(
            f"plan {name!r}: a micro-batch of {leading[0]} samples cannot be divided over {data} replicas"
            f" (allowed: {allowed})"
        )
    return {tensor: 0 for tensor in graph.inputs if graph.tensors[tensor].shape[:1] == (leading[0],)}
