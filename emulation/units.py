"""Quantities with units: `25 GB/s`, `200 Gbit/s`, `80 GiB`, `3 us`.

Numbers and SI or binary prefixes are read by QuantiPhy (23 ms to import; Pint is richer but costs 300 ms with its
registry, more than half the budget of `harness validate`). This module adds which base units measure what, and the
field types that specs and profiles use. Inside the program a quantity is a plain number in its base unit:

==============  =======  =============================
type            base     examples
==============  =======  =============================
`Bytes`         byte     `80 GiB`, `1500 B`, `4 KiB`
`Rate`          byte/s   `25 GB/s`, `200 Gbit/s`
`Duration`      second   `3 us`, `2 min`
`Flops`         FLOP     `3 GFLOP`
`FlopRate`      FLOP/s   `312 TFLOP/s`
`Fraction`      1        `6 %`, `0.06`
==============  =======  =============================

A bare number is refused where a unit is due: one peer counts GB as 2^30 and another as 10^9.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer, WithJsonSchema

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PICOSECONDS_PER_SECOND = 10**12


class Strict(BaseModel):
    """Base of every model at a file boundary: frozen, unknown keys refused, numbers not guessed from strings."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


@dataclass(frozen=True)
class Dimension:
    """What a quantity measures: its base unit, and what other units are worth in it."""

    name: str
    base: str
    units: Mapping[str, float]
    """Units that take SI (and for bytes and bits binary) prefixes, with their factor to the base unit."""
    whole: Mapping[str, float]
    """Units that take no prefix (`min`, `h`)."""
    examples: str
    bare: bool = False
    """Whether a number without a unit is meant in the base unit."""


BYTES = Dimension("size", "B", {"B": 1.0, "bit": 0.125}, {}, "'80 GiB' or '1500 B'")
"""Without `b`: who writes `64 kb` for the size of a thing means bytes."""
RATE = Dimension(
    "rate", "B/s", {"B/s": 1.0, "bit/s": 0.125, "b/s": 0.125, "bps": 0.125}, {}, "'25 GB/s' or '200 Gbit/s'"
)
DURATION = Dimension("duration", "s", {"s": 1.0}, {"min": 60.0, "h": 3600.0, "d": 86400.0}, "'3 us' or '2 min'")
FLOPS = Dimension("work", "FLOP", {"FLOP": 1.0}, {}, "'3 GFLOP'")
FLOP_RATE = Dimension("work rate", "FLOP/s", {"FLOP/s": 1.0, "FLOPS": 1.0}, {}, "'312 TFLOP/s'")
FRACTION = Dimension("fraction", "", {}, {"%": 0.01}, "'6 %' or 0.06", bare=True)

_SHAPE = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(\S.*?)?\s*\Z")


def parse(value: Any, dimension: Dimension) -> float:
    """Read a quantity into its base unit.

    Raises:
        ValueError: not a quantity, a unit of another dimension, a missing unit, or not finite.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"expected a {dimension.name} such as {dimension.examples}")
    if not isinstance(value, str):
        if not dimension.bare:
            raise ValueError(f"a {dimension.name} needs a unit, such as {dimension.examples}")
        return _finite(float(value), dimension)
    shape = _SHAPE.match(value)
    if shape is None:
        raise ValueError(f"{value!r} is not a {dimension.name}; expected one such as {dimension.examples}")
    number, unit = shape[1], shape[2] or ""
    if not unit and dimension.bare:
        return _finite(float(number), dimension)
    if not unit:
        raise ValueError(f"a {dimension.name} needs a unit, such as {dimension.examples}")
    if unit in dimension.whole:
        return _scaled(number, dimension.whole[unit], dimension)
    factor, power = _prefixed(unit, dimension)
    return _scaled(number, power * factor, dimension)


def _scaled(number: str, factor: float, dimension: Dimension) -> float:
    """The number, rounded once: 2.01 times 1000 in floating point is not 2010, and half a byte is refused."""
    from fractions import Fraction as Exact

    near = _finite(float(number) * factor, dimension)
    # An exponent beyond what a float holds would cost an exact number gigabytes.
    return float(Exact(number) * Exact(factor)) if near else 0.0


def _prefixed(unit: str, dimension: Dimension) -> tuple[float, float]:
    """(worth of the unit in the base unit, power of its prefix)."""
    from quantiphy import InvalidNumber, Quantity

    if unit in dimension.units:
        return dimension.units[unit], 1.0
    try:
        quantity = Quantity(f"1 {unit}", binary=True)
    except InvalidNumber:
        quantity = None
    if quantity is not None and quantity.units in dimension.units and float(quantity) >= _smallest(dimension):
        return dimension.units[quantity.units], float(quantity)
    raise ValueError(f"{unit!r} is not a unit of {dimension.name}; expected one such as {dimension.examples}")


def _smallest(dimension: Dimension) -> float:
    # `5 mB` and `3 mbit/s` are typing slips for `MB` and `Mbit/s`, never thousandths of a byte.
    return 0.0 if dimension is DURATION else 1.0


def _finite(value: float, dimension: Dimension) -> float:
    if not math.isfinite(value):
        raise ValueError(f"a {dimension.name} must be finite")
    return value


def render(value: float, unit: str) -> str:
    """A number with its unit for a person: `1.5 ms`, `64 MiB`, `12.3 GB/s`; three significant digits.

    Byte counts that are whole KiB or more are shown in binary units, all else in SI.
    """
    from quantiphy import Quantity

    if not math.isfinite(value):
        return f"{value} {unit}".strip()
    if unit == "B":
        for prefix, power in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
            if abs(value) >= power:
                return f"{value / power:.4g} {prefix}"
        return f"{value:g} B"
    if unit in {"", "%", "x", "count"}:
        return f"{value:.4g}{'' if unit in {'', 'count'} else unit if unit == 'x' else ' %'}"
    return str(Quantity(value, unit).render(prec=3, strip_zeros=True))


def picoseconds(seconds: float) -> int:
    """Seconds as the emulator's integer time, rounded to the nearest picosecond."""
    return round(seconds * PICOSECONDS_PER_SECOND)


def _reader(dimension: Dimension, *, least: float | None, whole: bool) -> Callable[[Any], float | int]:
    def read(value: Any) -> float | int:
        number = parse(value, dimension)
        if least is not None and number < least:
            raise ValueError(f"a {dimension.name} must be at least {least:g} {dimension.base}".rstrip())
        if not whole:
            return number
        if number != int(number):
            raise ValueError(f"{value!r} is not a whole number of {dimension.base}")
        return int(number)

    return read


def _field(dimension: Dimension, python: type, *, whole: bool = False) -> Any:
    def write(value: float) -> Any:
        # The base unit is written out so that what is dumped can be read back, exactly.
        return value if dimension.bare else f"{value!r} {dimension.base}"

    text = {
        "type": "string",
        "description": f"a {dimension.name} with its unit, such as {dimension.examples}",
    }
    schema: dict[str, Any] = {"anyOf": [{"type": "number"}, text]} if dimension.bare else text
    return Annotated[
        python,
        BeforeValidator(_reader(dimension, least=0.0, whole=whole)),
        PlainSerializer(write, when_used="json"),
        WithJsonSchema(schema),
    ]


if TYPE_CHECKING:
    Bytes = int
    Rate = float
    Duration = float
    Flops = float
    FlopRate = float
    Fraction = float
else:
    Bytes = _field(BYTES, int, whole=True)
    Rate = _field(RATE, float)
    Duration = _field(DURATION, float)
    Flops = _field(FLOPS, float)
    FlopRate = _field(FLOP_RATE, float)
    Fraction = _field(FRACTION, float)
