"""The part of a profile that says what processors do: rates of arithmetic and of memory, and how much of them one gets.

`cost.compute` and `cost.memory` turn these figures into times.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from emulation.figures import (
    BytesCurve,
    BytesFigure,
    DurationFigure,
    FactorFigure,
    FlopRateFigure,
    FlopsCurve,
    FractionFigure,
    Grade,
    HalfSizes,
    RateFigure,
    corrected,
    weakest,
)
from emulation.units import Strict
from emulation.wiring import LinkKind


class Bandwidth(Strict):
    """A peak rate and how much of it one gets, by transfer size."""

    peak: RateFigure
    efficiency: BytesCurve | None = None

    def rate(self, nbytes: float, curve: BytesCurve | None = None) -> float:
        """Bytes per second for a transfer of `nbytes`; `curve` takes the place of the efficiency."""
        curve = curve or self.efficiency
        return self.peak.value * (curve.value_at(nbytes) if curve else 1.0)

    def grade_at(self, nbytes: float, curve: BytesCurve | None = None) -> Grade:
        """Grade of `rate(nbytes)`."""
        curve = curve or self.efficiency
        return corrected(self.peak.grade, curve.grade_at(nbytes)) if curve else self.peak.grade


class FamilyCurve(Strict):
    """What kernels of one family of operators (`matmul`, `normalization`, ...) get; absent figures are the device's."""

    flops: FlopsCurve | None = None
    """Of the peak rate of arithmetic."""
    bytes: BytesCurve | None = None
    """Of the memory's peak bandwidth."""
    half: HalfSizes | None = None
    """How matrix products of small shapes fall behind `flops`."""
    launch: DurationFigure | None = None
    """Fixed time of one operator: the framework's dispatch as well as the device's launch."""
    contention: FactorFigure | None = None
    """How many times longer one takes when all cores of the host run the same."""


class Throughput(Strict):
    """A peak work rate and how much of it one gets, by the work of one kernel."""

    peak: FlopRateFigure
    efficiency: FlopsCurve | None = None
    families: dict[str, FamilyCurve] = Field(default_factory=dict)
    """By family of operators; what has no curve of its own is read off `efficiency`."""

    def rate(self, flops: float, family: str = "", shape: tuple[int, ...] = ()) -> float:
        """FLOP per second for a kernel of `flops`; `shape` is the (m, n, k) of a matrix product, if known."""
        curve, own = self._curve(family), self.family(family)
        part = own.half.part(shape) if own and own.half else 1.0
        return self.peak.value * part * (curve.value_at(flops) if curve else 1.0)

    def grade_at(self, flops: float, family: str = "") -> Grade:
        """Grade of `rate(flops)`."""
        curve, own = self._curve(family), self.family(family)
        efficiencies = ([curve.grade_at(flops)] if curve else []) + ([own.half.grade] if own and own.half else [])
        return corrected(self.peak.grade, weakest(efficiencies)) if efficiencies else self.peak.grade

    def family(self, name: str) -> FamilyCurve | None:
        """The curves of a family; a backward pass without its own has those of its forward pass."""
        return self.families.get(name) or self.families.get(name.removesuffix("-backward"))

    def _curve(self, family: str) -> FlopsCurve | None:
        found = self.family(family)
        return found.flops if found and found.flops else self.efficiency


class DeviceModel(Strict):
    """A kind of processor: what it computes, and the memory it computes from."""

    kind: Literal["cpu", "gpu"]
    memory: BytesFigure
    memory_bandwidth: Bandwidth
    compute: dict[str, Throughput] = Field(min_length=1)
    """Peak by dtype (`fp32`, `fp16`, `bf16`, ...)."""
    launch: DurationFigure
    """Fixed time before a kernel starts."""
    overlap: dict[LinkKind, FractionFigure] = Field(default_factory=dict)
    """By how much longer a kernel takes while a collective or a transfer of its device runs, by the links that uses
    (communication takes part of the processor and of its memory's bandwidth); absent: not at all."""
