"""The scalars of YAML 1.2's core schema: which plain words are numbers, booleans and nulls.

PyYAML follows YAML 1.1, where `NO` is False, `3:25` is 205 (base sixty), `1_000` is a thousand and `1e6` is a word.
YAML 1.2 has none of these surprises: `1e6` is a number, and the rest are the words they look like.
"""

from __future__ import annotations

import math
import re
from typing import Any

from yaml.resolver import BaseResolver

TAG = "tag:yaml.org,2002:"
CORE_SCHEMA: tuple[tuple[str, re.Pattern[str], list[str]], ...] = (
    ("null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    ("int", re.compile(r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$"), list("-+0123456789")),
    (
        "float",
        re.compile(
            r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
        ),
        list("-+0123456789."),
    ),
)
"""Tag, pattern and first characters of each implicit type of YAML 1.2 (section 10.3.2); `int` is tried first."""


class CoreResolver(BaseResolver):
    """Which plain scalars are numbers, booleans and nulls in YAML 1.2."""


for _name, _pattern, _first in CORE_SCHEMA:
    CoreResolver.add_implicit_resolver(TAG + _name, _pattern, _first)
CoreResolver.add_implicit_resolver(TAG + "merge", re.compile("^<<$"), ["<"])


def scalar(tag: str, text: str) -> Any:
    """The value of a plain scalar that matches the core schema's pattern for `tag`.

    A number in exponent notation without a point is whole where it can be: `1e6` serves an integer field.

    Raises:
        ValueError: not a finite number, or a whole number that does not fit in 64 bits.
    """
    if tag == "null":
        return None
    if tag == "bool":
        return text.lower() == "true"
    if tag == "int":
        return _whole(text)
    if "inf" in text.lower() or "nan" in text.lower() or not math.isfinite(float(text)):
        raise ValueError(f"{text} is not a finite number")
    value = float(text)
    exact = "e" in text.lower() and "." not in text and value.is_integer() and abs(value) < 2**53
    return int(value) if exact else value


def _whole(text: str) -> int:
    digits = text.lstrip("+-")
    if len(digits.lstrip("0xo")) > 64:
        raise ValueError("a whole number beyond 64 bits")
    base = {"0x": 16, "0o": 8}.get(digits[:2], 10)
    value = int(text, base)
    if abs(value) >= 2**64:
        raise ValueError("a whole number beyond 64 bits")
    return value
