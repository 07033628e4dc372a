"""How a case says what it wants."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Failure(AssertionError):
    """A provider did not do what the interface promises."""


class Skipped(Exception):
    """A case does not apply here; the text says why."""


def expect(condition: object, otherwise: str) -> None:
    """Hold the provider to something.

    Raises:
        Failure: with `otherwise`, which says what was found.
    """
    if not condition:
        raise Failure(otherwise)


def equal(found: object, wanted: object, what: str) -> None:
    """Hold the provider to a value.

    Raises:
        Failure: naming both.
    """
    if found != wanted:
        raise Failure(f"{what}: expected {_short(wanted)}, found {_short(found)}")


def refused(kinds: type[Exception] | tuple[type[Exception], ...], action: Callable[[], object], what: str) -> None:
    """Hold the provider to refusing something with a typed error.

    Raises:
        Failure: it accepted it, or failed otherwise.
    """
    try:
        action()
    except kinds:
        return
    except Exception as error:
        raise Failure(f"{what} ended in {type(error).__name__}: {error}") from error
    raise Failure(f"{what} was accepted")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}... ({len(text)} characters)"
