"""What may be said of one of our numbers beside a published one.

Most reproductions go wrong in this sentence, so it is decided by rules and not by the author of a report:

1. Different things are `not-comparable`: another unit, another data set, batch or precision, an unknown figure.
2. A number that was emulated, or measured on other hardware than the paper's, says nothing about the paper's absolute
   value. At most its shape is compared: `shape-only`. It can never be `matches`, `better` or `worse`.
3. "Up to N x" is somebody's best case. A ratio below it is consistent with the claim, never `worse`.
4. Only what is left is `matches` (the intervals overlap), `better` or `worse`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from emulation.units import BYTES, DURATION, FLOP_RATE, FLOPS, FRACTION, RATE, parse, render
from harness.judging.observations import RATIO_UNIT, Figure, record_coordinate
from harness.loading.sweep import spelled
from harness.records import Kind
from harness.references import ANY_HARDWARE, Bound, Conditions, Published

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from harness.records import Record

TOO_WIDE = 0.5
"""An interval wider than this share of the published value cannot tell a match from a miss."""

_DIMENSIONS = {dimension.base: dimension for dimension in (BYTES, RATE, DURATION, FLOPS, FLOP_RATE)}


class Word(StrEnum):
    """The verdicts. `pass` and `fail` are for bounds a spec states itself, all others for published figures."""

    MATCHES = "matches"
    BETTER = "better"
    WORSE = "worse"
    SHAPE_ONLY = "shape-only"
    NOT_COMPARABLE = "not-comparable"
    NOT_RUN = "not-run"
    PASS = "pass"
    FAIL = "fail"


@dataclass(frozen=True)
class Judgement:
    """A word, whether it counts as kept, and why."""

    word: Word
    passed: bool | None
    """None: nothing was promised that could be missed."""
    reason: str


def quantity(value: float | str, unit: str) -> float:
    """A bound of a spec in a metric's unit: `5 ms` for seconds, `10 x` or 10 for ratios, `80 %` or 80 for percent.

    Raises:
        ValueError: the unit is missing where one is due, or measures something else.
    """
    if unit in _DIMENSIONS:
        return parse(value, _DIMENSIONS[unit])
    if unit == "":
        return parse(value, FRACTION)
    if isinstance(value, str):
        number = value.strip()
        if number.endswith(unit):
            number = number[: -len(unit)].strip()
        try:
            return float(number)
        except ValueError:
            raise ValueError(f"{value!r} is not a number of {unit!r}") from None
    return float(value)


def convert(value: float, unit: str, to: str) -> float | None:
    """A published value in the metric's unit, or None where the two measure different things."""
    if unit == to:
        return value
    if {unit, to} == {"%", ""}:
        return value / 100 if to == "" else value * 100
    if to not in _DIMENSIONS:
        return None
    try:
        return parse(f"{value!r} {unit}", _DIMENSIONS[to])
    except ValueError:
        return None


def compare(
    figure: Figure, *, better: str, record: Record, labels: Mapping[str, str], published: Published, tolerance: float
) -> Judgement:
    """Hold one of our figures against a published one."""
    if published.value is None:
        note = f": {published.note}" if published.note else ""
        return Judgement(Word.NOT_COMPARABLE, None, f"the published figure is not known{note}")
    theirs = convert(published.value, published.unit, figure.unit)
    if theirs is None:
        return Judgement(Word.NOT_COMPARABLE, False, _unit_mismatch(figure, published))
    different = [text for same, text in _differences(record, labels, published.conditions) if same is False]
    if different:
        return Judgement(Word.NOT_COMPARABLE, None, "; ".join(different))
    unstated = [text for same, text in _differences(record, labels, published.conditions) if same is None]
    elsewhere = other_hardware(figure, record, published.conditions)
    if elsewhere or unstated:
        return _shape(figure, theirs, published, "; ".join(filter(None, [elsewhere, *unstated])))
    direction = "higher" if figure.unit == RATIO_UNIT else better
    return _absolute(figure, theirs, published, max(tolerance, published.tolerance), direction)


def other_hardware(figure: Figure, record: Record, conditions: Conditions) -> str:
    """Why our figure does not come from the paper's hardware, or an empty string where it does."""
    if figure.kind is Kind.EMULATED or record.kind is Kind.EMULATED:
        return f"ours is emulated ({record.target.hardware})"
    if conditions.hardware == ANY_HARDWARE:
        return ""
    if conditions.hardware is None or not conditions.devices:
        return "the paper's hardware is not on file"
    found = " ".join(_words(record.provenance.hardware))
    missing = [device for device in conditions.devices if not _names(found, device)]
    if missing:
        return f"measured on {record.target.hardware}, the paper used {conditions.hardware}"
    count = len(record.provenance.hardware.get("gpus") or ())
    if conditions.device_count is not None and count != conditions.device_count:
        return f"measured with {count} accelerators, the paper used {conditions.device_count}"
    return ""


def _unit_mismatch(figure: Figure, published: Published) -> str:
    text = f"ours is in {figure.unit or 'no unit'!r}, the published figure in {published.unit or 'no unit'!r}"
    if published.unit == RATIO_UNIT and figure.unit != RATIO_UNIT:
        text += "; a published ratio needs a `baseline` here"
    return text


def _shape(figure: Figure, theirs: float, published: Published, why: str) -> Judgement:
    """Compare which side of 1 a ratio lies on; absolute values have no shape of their own."""
    if figure.unit != RATIO_UNIT:
        return Judgement(Word.SHAPE_ONLY, None, f"{why}; absolute values are not compared")
    if (figure.value > 1) != (theirs > 1):
        return Judgement(Word.SHAPE_ONLY, False, f"{why}; the order is the other way round than published")
    share = f"the same order; ours is {figure.value / theirs:.2g} of the published {published.text}"
    return Judgement(Word.SHAPE_ONLY, True, f"{why}; {share}")


def _absolute(figure: Figure, theirs: float, published: Published, tolerance: float, better: str) -> Judgement:
    margin = abs(theirs) * tolerance
    low, high = theirs - margin, theirs + margin
    if published.bound is not Bound.EXACT:
        return _bounded(figure, low, high, published, better)
    if figure.width > TOO_WIDE * abs(theirs) and figure.low <= high and figure.high >= low:
        return Judgement(Word.NOT_COMPARABLE, None, "our interval is too wide to tell a match from a miss")
    if figure.low <= high and figure.high >= low:
        return Judgement(Word.MATCHES, True, _overlap(tolerance))
    if better == "target":
        return Judgement(Word.WORSE, False, "our interval does not reach the published value")
    ahead = (figure.value > theirs) == (better == "higher")
    where = "above" if figure.value > theirs else "below"
    word, passed = (Word.BETTER, True) if ahead else (Word.WORSE, False)
    return Judgement(word, passed, f"our interval lies {where} the published value; {better} is better")


def _bounded(figure: Figure, low: float, high: float, published: Published, better: str) -> Judgement:
    """Same hardware and conditions, against a published bound."""
    upper = published.bound is Bound.UPPER
    if figure.low <= high and figure.high >= low:
        return Judgement(Word.MATCHES, True, f"reaches the published bound, {published.text}")
    if figure.value > high:
        good = better != "lower"
        text = f"beyond {published.text}" if upper else f"keeps {published.text}"
        return Judgement(Word.BETTER if good else Word.WORSE, good, text)
    if not upper:
        good = better == "lower"
        return Judgement(Word.BETTER if good else Word.WORSE, good, f"short of {published.text}")
    if figure.unit == RATIO_UNIT and (figure.value > 1) != (high > 1):
        return Judgement(Word.SHAPE_ONLY, False, f"the order is the other way round than published, {published.text}")
    return Judgement(Word.SHAPE_ONLY, True, f"consistent with {published.text}: a best case bounds, it is no target")


def _overlap(tolerance: float) -> str:
    allowed = f" within {tolerance:.3g} of it" if tolerance else ""
    return f"our interval reaches the published value{allowed}; same conditions"


def _differences(
    record: Record, labels: Mapping[str, str], conditions: Conditions
) -> Iterator[tuple[bool | None, str]]:
    """(same, or None if our side does not say; what to tell) for each condition that the paper states."""
    for name in ("dataset", "batch", "precision"):
        stated = getattr(conditions, name)
        if stated is None:
            continue
        ours = _stated(record, labels, name)
        if ours is None:
            yield None, f"our {name} is not stated, the paper's is {stated}"
        else:
            text = f"our {name} is {spelled(ours)}, the paper's {stated}"
            yield spelled(ours).casefold() == str(stated).casefold(), text


def _stated(record: Record, labels: Mapping[str, str], name: str) -> Any:
    if name in labels:
        return labels[name]
    for key in (name, f"engine.{name}"):
        try:
            return record_coordinate(record, key)
        except KeyError:
            continue
    return None


def _words(found: Any) -> Iterator[str]:
    """Every text in the description of a machine."""
    if isinstance(found, dict):
        for value in found.values():
            yield from _words(value)
    elif isinstance(found, list | tuple):
        for value in found:
            yield from _words(value)
    elif isinstance(found, str):
        yield found


def _names(found: str, device: str) -> bool:
    return re.search(rf"(?<![A-Za-z0-9]){re.escape(device)}(?![A-Za-z0-9])", found, re.IGNORECASE) is not None


def shown(figure: Figure) -> str:
    """A figure with its interval for a reader: `1.2 ms [1.1 ms, 1.4 ms]`."""
    value = render(figure.value, figure.unit)
    if figure.low == figure.high:
        return value
    return f"{value} [{render(figure.low, figure.unit)}, {render(figure.high, figure.unit)}]"
