"""A quantity that a model writes is the quantity it reads, whatever unit it came in."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from emulation.units import Bytes, Duration, FlopRate, Flops, Fraction, Rate, Strict


class Quantities(Strict):
    size: Bytes = 0
    rate: Rate = 0.0
    time: Duration = 0.0
    work: Flops = 0.0
    speed: FlopRate = 0.0
    part: Fraction = 0.0


numbers = st.floats(0, 1e30, allow_nan=False, allow_infinity=False)


@given(st.integers(0, 2**53), numbers, numbers, numbers, numbers, numbers)
def test_what_is_written_is_read_back_exactly(size, rate, time, work, speed, part):
    texts = {
        "size": f"{size} B", "rate": f"{rate!r} B/s", "time": f"{time!r} s", "work": f"{work!r} FLOP",
        "speed": f"{speed!r} FLOP/s", "part": part,
    }  # fmt: skip
    first = Quantities.model_validate(texts)
    again = Quantities.model_validate(first.model_dump(mode="json"))
    assert again == first
    assert (first.size, first.rate, first.time) == (size, rate, time)


@given(
    st.integers(1, 999),
    st.sampled_from([("B", 1), ("kB", 1000), ("KiB", 1024), ("MB", 10**6), ("GiB", 2**30), ("TB", 10**12)]),
)
def test_prefixes_mean_powers_of_a_thousand_or_of_1024(number, unit):
    assert Quantities.model_validate({"size": f"{number} {unit[0]}"}).size == number * unit[1]


@given(st.integers(1, 999))
def test_bits_are_an_eighth_of_bytes(number):
    both = (
        Quantities.model_validate({"rate": f"{8 * number} Gbit/s"}),
        Quantities.model_validate({"rate": f"{number} GB/s"}),
    )
    assert both[0].rate == pytest.approx(both[1].rate)


@given(
    st.text(max_size=10) | st.booleans() | st.floats() | st.integers() | st.none() | st.lists(st.integers(), max_size=2)
)
def test_anything_else_is_refused_as_a_value_and_never_raises_otherwise(value):
    for name in Quantities.model_fields:
        with contextlib.suppress(ValidationError):
            Quantities.model_validate({name: value})
