"""`--set engine.x=4`: one value of a spec, replaced on the command line.

The value is read as YAML (so `4` is a number, `[1, 2]` a list and `1 MiB` text) and goes through the same models as the
file, so that a mistyped path or value gets the same message, with the override's number and column as its place.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from harness.errors import Position, Problem, SpecError
from harness.loading.document import Document, Keys, Spot, compose
from harness.loading.grafting import graft

if TYPE_CHECKING:
    from collections.abc import Sequence

ORIGIN = "--set #"
_FREE = {
    ("sweep", "grid"), ("sweep", "zip"), ("sweep", "list", 0), ("sweep", "exclude", 0),
    ("tables", 0, "where"), ("tables", 0, "baseline"), ("expect", 0, "where"), ("expect", 0, "baseline"),
}  # fmt: skip
"""Mappings whose keys are themselves dotted paths (any index stands for all)."""


def apply(document: Document, overrides: Sequence[str]) -> tuple[Document, list[Keys]]:
    """The document with every override applied in order, and the paths that were set.

    Raises:
        SpecError: an override is not `PATH=VALUE`, or names a list item that is not there.
    """
    problems: list[Problem] = []
    paths: list[Keys] = []
    for number, text in enumerate(overrides, start=1):
        try:
            document, path = _apply(document, text, f"{ORIGIN}{number}")
            paths.append(path)
        except SpecError as error:
            problems.extend(error.problems)
    if problems:
        raise SpecError([*problems, *document.problems])
    return document, paths


def _apply(document: Document, text: str, origin: str) -> tuple[Document, Keys]:
    named, equals, value = text.partition("=")
    written = Document(origin, None, {}, {origin: (text,)})

    def refused(what: str, expected: str, column: int = 1, length: int = 1) -> SpecError:
        return SpecError([written.place(Problem((), what, expected, position=Position(origin, 1, column, length)))])

    if not equals or not all(named.split(".")) or named != named.strip():
        raise refused(f"{text!r} is not an override", "PATH=VALUE, as in engine.x=4", length=len(text))
    if "\n" in text or "\r" in text:
        raise refused("an override of several lines", "one line; a list is [1, 2] and a mapping {a: 1}")
    steps = named.split(".")
    if steps[0] == "extends":
        raise refused("'extends' cannot be overridden", "it in the file", length=len(named))
    path, columns, wrong = _path(document.data, steps)
    if wrong:
        raise refused(wrong, "an index that is there", length=len(named))
    # Blanks in place of the path make the parser count columns from the start of the argument.
    piece = compose(" " * (len(named) + 1) + value, origin, empty=True)
    value_spot = piece.spots[()]
    keys: dict[Keys, Spot] = {}
    for length, column in enumerate(columns, start=1):
        key = Position(origin, 1, column, len(str(path[length - 1])))
        keys[path[:length]] = Spot(value_spot.value, key, block=length < len(path) or value_spot.block)
    return graft(document, path, replace(piece, sources={origin: (text,)}), keys=keys), path


def _path(data: Any, steps: list[str]) -> tuple[Keys, list[int], str]:
    """Keys and indices for the dotted steps and the column each begins in, or why there are none."""
    path: list[str | int] = []
    columns: list[int] = []
    here = data
    for place, step in enumerate(steps):
        column = len(".".join(steps[:place])) + (2 if place else 1)
        if tuple(0 if isinstance(p, int) else p for p in path) in _FREE:
            return (*path, ".".join(steps[place:])), [*columns, column], ""
        if isinstance(here, list):
            if not step.isdecimal() or int(step) >= len(here):
                return (), [], f"'{'.'.join(map(str, path))}' is a list of {len(here)} and has no item {step!r}"
            here = here[int(step)]
            path.append(int(step))
        elif step == "0" and path == ["on"] and (here is None or isinstance(here, dict)):
            # One target written without a list is the list's first.
            continue
        else:
            here = here.get(step) if isinstance(here, dict) else None
            path.append(step)
        columns.append(column)
    return tuple(path), columns, ""
