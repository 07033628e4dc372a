"""A sweep: which cells an experiment has, in which order, and what they are called.

`grid` is a product (the first path written changes slowest), `zip` pairs lists of equal length, `list` spells each
cell out. The order is the order of writing and nothing else, and a cell's name is made of what makes it differ
(`model=bert,transports=shm`), so that names and order are the same on every machine and in every run.
"""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.canonical import digest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from harness.loading.document import Keys
    from harness.spec import Sweep

MAX_CELLS = 100_000
MAX_NAME = 96
NO_SWEEP = "default"


@dataclass(frozen=True)
class Choice:
    """One value for one path, and where the document has it."""

    path: str
    value: Any
    place: Keys
    """Path of the value in the document: `("sweep", "grid", "engine.model", 2)`."""


@dataclass(frozen=True)
class Cell:
    """One point of the sweep."""

    name: str
    choices: tuple[Choice, ...]

    @property
    def swept(self) -> dict[str, Any]:
        """Path to value as written, in the order of the sweep."""
        return {choice.path: choice.value for choice in self.choices}


def count(sweep: Sweep) -> int:
    """How many cells there are before `exclude`, without making them."""
    if sweep.grid:
        return math.prod(len(values) for values in sweep.grid.values())
    if sweep.zip:
        return min(len(values) for values in sweep.zip.values())
    return len(sweep.cells) or 1


def choices(sweep: Sweep) -> list[Choice]:
    """Every value written in the sweep, once, in the order of writing."""
    found = [
        Choice(path, value, ("sweep", form, path, index))
        for form, written in (("grid", sweep.grid), ("zip", sweep.zip))
        for path, values in written.items()
        for index, value in enumerate(values)
    ]
    listed = enumerate(sweep.cells)
    return found + [Choice(path, v, ("sweep", "list", i, path)) for i, cell in listed for path, v in cell.items()]


def first(sweep: Sweep) -> tuple[Choice, ...]:
    """The choices of the first cell that is not excluded: what the rest of the document is checked together with."""
    points = _points(sweep) if count(sweep) <= MAX_CELLS else iter(())
    return next((point for point in points if not _excluded(point, sweep.exclude)), axes(sweep))


def axes(sweep: Sweep) -> tuple[Choice, ...]:
    """The first value written for every path."""
    found: dict[str, Choice] = {}
    for choice in choices(sweep):
        found.setdefault(choice.path, choice)
    return tuple(found.values())


def paths(sweep: Sweep) -> list[str]:
    """Every swept path, in the order of writing."""
    return [choice.path for choice in axes(sweep)]


def expand(sweep: Sweep) -> list[Cell]:
    """The cells that are not excluded, in order, each with a name that no other has, whatever its case.

    The caller has seen to it that `count` is at most `MAX_CELLS`.
    """
    kept = [point for point in _points(sweep) if not _excluded(point, sweep.exclude)]
    short = short_names(paths(sweep))
    named = [(_name(point, short), point) for point in kept]
    taken: dict[str, int] = {}
    for name, _ in named:
        taken[name.casefold()] = taken.get(name.casefold(), 0) + 1
    return [Cell(name if taken[name.casefold()] == 1 else _suffixed(name, point), point) for name, point in named]


def _points(sweep: Sweep) -> Iterator[tuple[Choice, ...]]:
    written = choices(sweep)
    if sweep.cells:
        for index in range(len(sweep.cells)):
            yield tuple(c for c in written if c.place[2] == index)
        return
    columns = [list(group) for _, group in itertools.groupby(written, key=lambda choice: choice.path)]
    yield from zip(*columns, strict=False) if sweep.zip else itertools.product(*columns)


def _excluded(point: Iterable[Choice], rules: Iterable[Mapping[str, Any]]) -> bool:
    here = {choice.path: choice.value for choice in point}
    return any(rule and all(p in here and equal(here[p], v) for p, v in rule.items()) for rule in rules)


def equal(left: Any, right: Any) -> bool:
    """Whether two values of a document are the same; `true` is not 1, and 1 is 1.0."""
    return bool(left == right) and isinstance(left, bool) == isinstance(right, bool)


def short_names(swept: Iterable[str]) -> dict[str, str]:
    """For each path the shortest tail that no other path ends with: `model` for `engine.model`."""
    all_paths = list(swept)
    short: dict[str, str] = {}
    for path in all_paths:
        parts = path.split(".")
        tails = (".".join(parts[-n:]) for n in range(1, len(parts) + 1))
        others = [p for p in all_paths if p != path]
        short[path] = next(t for t in tails if t == path or not any(p == t or p.endswith(f".{t}") for p in others))
    return short


def _name(point: tuple[Choice, ...], short: Mapping[str, str]) -> str:
    if not point:
        return NO_SWEEP
    exact = True
    parts = []
    for choice in point:
        for text, joint in ((short[choice.path], "="), (_text(choice.value), ",")):
            safe = re.sub(r"[^A-Za-z0-9._+-]+", "_", text.replace(" ", ""))
            exact = exact and bool(safe) and safe == text.replace(" ", "")
            parts += [safe, joint]
    name = "".join(parts[:-1])
    return name if exact and len(name) <= MAX_NAME else _suffixed(name, point)


def _text(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return "+".join(map(_text, value)) or "none"
    return (called(value) or digest(value)[:8]) if isinstance(value, dict) else str(value)


def called(value: Mapping[str, Any]) -> str:
    """What a mapping among swept values is called: by its `name`, else by its `kind`; empty where it has neither."""
    return str(value.get("name") or value.get("kind") or "")


def spelled(value: Any) -> str:
    """A value as text: what a row or a column is headed with, and what a selection may call it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ", ".join(spelled(item) for item in value) or "none"
    return (isinstance(value, dict) and called(value)) or str(value)


def _suffixed(name: str, point: tuple[Choice, ...]) -> str:
    mark = digest([[choice.path, choice.value] for choice in point])[:8]
    return f"{name[: MAX_NAME - 9]}-{mark}"
