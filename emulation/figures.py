"""Figures that say where they come from.

A simulator is no better than its numbers, so a number in a hardware profile never stands alone: it has a value with a
unit, a *grade* and a *source*. Grades, from strong to weak:

``measured``   by a probe on the machine the profile describes
``prior``      a constant somebody else measured or tuned on such machines (NCCL's tuner, a calibrated simulator)
``datasheet``  what the vendor promises; a peak, rarely reached

Two rules combine them. A result is as good as the weakest figure it used. And a datasheet peak *corrected* by an
efficiency has the grade of the efficiency: the peak is exact as a definition, what is uncertain is how much of it one
gets. A measured or prior peak is itself uncertain, so there the weakest counts again.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from emulation.units import Bytes, Duration, FlopRate, Flops, Fraction, Rate, Strict

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Grade = Literal["measured", "prior", "datasheet"]
GRADES: tuple[Grade, ...] = ("measured", "prior", "datasheet")
"""From strong to weak."""


def weakest(grades: Iterable[Grade]) -> Grade:
    """The weakest of some grades; `measured` for none at all."""
    return GRADES[max((GRADES.index(grade) for grade in grades), default=0)]


def weaker(grade: Grade) -> Grade:
    """One grade down: what a figure is worth outside the range it was taken in."""
    return GRADES[min(GRADES.index(grade) + 1, len(GRADES) - 1)]


def corrected(peak: Grade, efficiency: Grade) -> Grade:
    """Grade of a peak times an efficiency."""
    return efficiency if peak == "datasheet" else weakest((peak, efficiency))


class Figure(Strict):
    """One number of a profile; subclasses add `value` with its unit."""

    grade: Grade
    source: str = Field(min_length=1)
    """Key into the profile's `sources`."""


class RateFigure(Figure):
    """Bytes per second."""

    value: Rate = Field(ge=1)


class DurationFigure(Figure):
    """Seconds; a day is longer than anything a profile describes."""

    value: Duration = Field(le=86_400)


class BytesFigure(Figure):
    """Bytes."""

    value: Bytes = Field(gt=0)


class FlopRateFigure(Figure):
    """Floating-point operations per second."""

    value: FlopRate = Field(ge=1)


class FractionFigure(Figure):
    """A part of one."""

    value: Fraction = Field(gt=0, le=1)


class SizeFigure(Figure):
    """A number of rows or columns."""

    value: float = Field(ge=0, allow_inf_nan=False)


class FactorFigure(Figure):
    """How many times longer something takes."""

    value: float = Field(ge=1, le=1000)


class HalfSizes(Figure):
    """Half-performance lengths of a matrix product (Hockney and Jesshope, Parallel Computers, 1981).

    A product of shape (m, n, k) gets 1 / ((1 + rows / m) (1 + columns / min(n, k))) of what a large one gets: half of
    it where m is `rows` and the others are large, or min(n, k) is `columns`.
    """

    rows: float = Field(ge=0, allow_inf_nan=False)
    columns: float = Field(ge=0, allow_inf_nan=False)

    def part(self, shape: Sequence[int]) -> float:
        """Of the rate of a large product; of one whose shape is not known, all of it."""
        if len(shape) != 3:
            return 1.0
        m, n, k = shape
        return 1 / ((1 + self.rows / m) * (1 + self.columns / min(n, k)))


class FlopsPoint(Strict):
    """A knot of a `FlopsCurve`."""

    at: Flops = Field(gt=0)
    value: Fraction = Field(gt=0, le=1)


class BytesPoint(Strict):
    """A knot of a `BytesCurve`."""

    at: Bytes = Field(gt=0)
    value: Fraction = Field(gt=0, le=1)


class _Curve(Figure):
    """Efficiency against the size of the work: linear between knots in log(work), constant outside them."""

    @property
    def knots(self) -> Sequence[tuple[float, float]]:
        """(work, efficiency) pairs, work rising."""
        raise NotImplementedError

    def value_at(self, work: float) -> float:
        """Efficiency at `work`, in (0, 1]; clamped to the end knots outside their range."""
        knots = self.knots
        if work <= knots[0][0]:
            return knots[0][1]
        for (left, low), (right, high) in pairwise(knots):
            if work <= right:
                return low + (high - low) * math.log(work / left) / math.log(right / left)
        return knots[-1][1]

    def grade_at(self, work: float) -> Grade:
        """The curve's grade, one weaker where it had to be clamped below its first knot."""
        return weaker(self.grade) if 0 < work < self.knots[0][0] else self.grade

    @model_validator(mode="after")
    def _monotone(self) -> _Curve:
        work = [at for at, _ in self.knots]
        if any(a >= b for a, b in pairwise(work)):
            raise PydanticCustomError("curve_order", "the points of a curve must have rising, distinct `at`")
        values = [value for _, value in self.knots]
        if values not in (sorted(values), sorted(values, reverse=True)):
            raise PydanticCustomError("curve_monotone", "an efficiency curve must only rise or only fall")
        return self


class FlopsCurve(_Curve):
    """Efficiency against floating-point operations."""

    points: list[FlopsPoint] = Field(min_length=1)

    @property
    def knots(self) -> Sequence[tuple[float, float]]:
        """(FLOP, efficiency) pairs."""
        return [(point.at, point.value) for point in self.points]


class BytesCurve(_Curve):
    """Efficiency against bytes moved."""

    points: list[BytesPoint] = Field(min_length=1)

    @property
    def knots(self) -> Sequence[tuple[float, float]]:
        """(bytes, efficiency) pairs."""
        return [(point.at, point.value) for point in self.points]
