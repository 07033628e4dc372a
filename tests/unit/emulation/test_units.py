"""Quantities: what is written is what is meant, to the byte."""

import pytest

from emulation.units import BYTES, DURATION, RATE, Bytes, Strict, parse


class Sized(Strict):
    size: Bytes


@pytest.mark.parametrize("prefix", [("kB", 3), ("MB", 6), ("GB", 9)], ids=lambda p: p[0])
def test_decimal_sizes_are_whole_bytes_whatever_floating_point_makes_of_them(prefix):
    unit, power = prefix
    for hundredths in range(1, 1000):
        written = f"{hundredths / 100:.2f} {unit}"
        assert Sized(size=written).size == hundredths * 10 ** (power - 2)


def test_part_of_a_byte_is_refused():
    with pytest.raises(ValueError, match="is not a whole number of B"):
        Sized(size="1.2345 kB")


@pytest.mark.parametrize("text", ["64 kb", "1 Mb", "8 b", "5 mB", "64", "64 K", "1,000 B", "1e400 B", "1e999999999 B"])
def test_a_size_that_may_mean_something_else_is_refused(text):
    with pytest.raises(ValueError, match="size"):
        parse(text, BYTES)


@pytest.mark.parametrize(
    ("text", "dimension", "value"),
    [
        ("64KiB", BYTES, 65536.0),
        ("1 kbit", BYTES, 125.0),
        ("100 Gb/s", RATE, 12.5e9),
        ("1.97 GB/s", RATE, 1.97e9),
        ("3 us", DURATION, 3e-6),
        ("0e999999999 s", DURATION, 0.0),
        ("1e-999999999 s", DURATION, 0.0),
        ("2 min", DURATION, 120.0),
    ],
)
def test_a_quantity_is_read_in_its_base_unit(text, dimension, value):
    assert parse(text, dimension) == value
