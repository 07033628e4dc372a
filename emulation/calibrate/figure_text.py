"""Figures as a profile writes them: four significant digits and a unit."""

from __future__ import annotations

DIGITS = 4


def rounded(value: float) -> float:
    """Four significant digits: more would be noise."""
    return float(f"{value:.{DIGITS}g}")


def duration(seconds: float) -> str:
    """As microseconds, so that all durations of a profile can be compared by eye."""
    return f"{rounded(seconds * 1e6):.12g} us"


def rate(bytes_per_second: float) -> str:
    """As GB/s."""
    return f"{rounded(bytes_per_second / 1e9):.12g} GB/s"


def flop_rate(flops_per_second: float) -> str:
    """As GFLOP/s."""
    return f"{rounded(flops_per_second / 1e9):.12g} GFLOP/s"


def size(nbytes: float) -> str:
    """In bytes, exactly."""
    return f"{int(nbytes)} B"
