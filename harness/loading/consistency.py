"""What no model of a single section can know: whether the names a spec uses exist.

A table names metrics and labels that the engine must declare, an expectation names published figures, `on` names
hardware profiles, a sweep names paths. Each check works on the plain document and steps over what is malformed (the
models report that), so that every mistake in a file is found in one pass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness import hardware, project
from harness.errors import Problem, SpecError, nearest
from harness.loading import sweep
from harness.loading.validation import describe, dotted, fields, resolves
from harness.spec import Experiment, Limits, Needs, RepeatSpec, Target

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pydantic import BaseModel

    from harness.api import EngineSpec, Metric
    from harness.loading.document import Keys
    from harness.spec import Sweep

SWEEPABLE: Mapping[str, type[BaseModel]] = {"on": Target, "repeat": RepeatSpec, "limits": Limits, "needs": Needs}
"""Sections beside `engine` whose fields may be swept."""
COORDINATES = ("cell", "backend", "hardware")
"""What every result can be selected by, besides labels and paths."""
_FORMS = ("grid", "zip", "list")


@dataclass(frozen=True)
class Names:
    """What a spec's own words can be looked up in."""

    data: Mapping[str, Any]
    engine: type[EngineSpec] | None
    """None where the engine is unknown: what it declares is then not checked."""
    sweep: Sweep

    @property
    def metrics(self) -> dict[str, Metric]:
        """Declared metrics by name."""
        return {m.name: m for m in self.engine.METRICS} if self.engine else {}

    def coordinates(self, labels: Sequence[str]) -> list[str]:
        """What results can be selected by, nearest first."""
        own = [f"engine.{name}" for name in fields(self.engine)] if self.engine else []
        return list(dict.fromkeys([*labels, *sweep.paths(self.sweep), *COORDINATES, *own]))

    def is_coordinate(self, key: str, labels: Sequence[str]) -> bool:
        """Whether `key` is a label, a swept path or a path of the spec."""
        return key in self.coordinates(labels) or self.is_path(key)

    def is_path(self, key: str) -> bool:
        """Whether a document of this experiment may hold a value at a dotted path."""
        head, *rest = key.split(".")
        if head == "engine" and rest:
            return self.engine is None or resolves(self.engine, rest)
        return resolves(Experiment, key.split("."))


def problems(names: Names) -> Iterator[Problem]:
    """Every name that does not exist, and every sweep that cannot be expanded."""
    yield from _targets(names.data.get("on"))
    for choice in sweep.choices(names.sweep):
        if choice.path == "on.hardware" and isinstance(choice.value, str) and not hardware.known(choice.value):
            yield from _placed(hardware.unknown(choice.value), choice.place)
    yield from _paper(names.data.get("paper"))
    yield from sweep_problems(names)
    if names.engine is not None:
        for section, check in (("tables", _table), ("expect", _expectation)):
            items = names.data.get(section)
            for index, item in enumerate(items if isinstance(items, list) else []):
                if isinstance(item, dict):
                    yield from check(names, item, (section, index))


def _targets(on: Any) -> Iterator[Problem]:
    targets = on if isinstance(on, list) else [on]
    seen: list[tuple[Any, Any]] = []
    if on == []:
        yield Problem(("on",), "no target is named", "a backend and hardware, or a list of them", at_key=True)
    for index, target in enumerate(targets):
        if not isinstance(target, dict):
            continue
        path: Keys = ("on", index) if isinstance(on, list) else ("on",)
        name = target.get("hardware")
        if isinstance(name, str) and not hardware.known(name):
            yield from _placed(hardware.unknown(name), (*path, "hardware"))
        here = (target.get("backend", "auto"), target.get("hardware", "laptop"))
        if here in seen:
            yield Problem(path, f"backend {here[0]!r} on {here[1]!r} is named twice", "each target once")
        seen.append(here)


def _paper(key: Any) -> Iterator[Problem]:
    known = sorted(path.stem for path in project.published().glob("*.yaml"))
    if isinstance(key, str) and key and key not in known:
        yield Problem(
            ("paper",), f"no paper {key!r} under results/published", f"one of: {', '.join(known)}", nearest(key, known)
        )


def _placed(error: SpecError, path: Keys) -> Iterator[Problem]:
    for problem in error.problems:
        yield problem if problem.position else Problem(path, problem.what, problem.expected, problem.suggestion)


# --- sweeps


def sweep_problems(names: Names) -> Iterator[Problem]:
    """Why the sweep cannot be expanded as it is written."""
    swept = names.sweep
    used = [form for form, axes in zip(_FORMS, (swept.grid, swept.zip, swept.cells), strict=True) if axes]
    if len(used) > 1:
        yield Problem(("sweep", used[1]), f"a sweep has both {used[0]} and {used[1]}", "one of grid, zip and list")
        return
    yield from _axes(swept)
    swept_paths = sweep.paths(swept)
    for choice in sweep.axes(swept):
        yield from _swept_path(names, choice, swept_paths)
    for index, rule in enumerate(swept.exclude):
        for path in rule:
            if path not in swept_paths:
                place: Keys = ("sweep", "exclude", index, path)
                yield Problem(
                    place,
                    f"excludes by '{path}', which is not swept",
                    "a swept path",
                    nearest(path, swept_paths),
                    at_key=True,
                )
    cells = sweep.count(swept)
    if cells > sweep.MAX_CELLS:
        yield Problem(("sweep",), f"the sweep has {cells} cells", f"at most {sweep.MAX_CELLS}")


def _axes(swept: Sweep) -> Iterator[Problem]:
    for form, axes in (("grid", swept.grid), ("zip", swept.zip)):
        for path, values in axes.items():
            if not values:
                yield Problem(("sweep", form, path), f"'{path}' is swept over no value", "a list with an item")
            if form == "grid" and len(values) <= sweep.MAX_CELLS:
                yield from _repeated(values, ("sweep", form, path))
    lengths = {path: len(values) for path, values in swept.zip.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{path} has {n}" for path, n in lengths.items())
        yield Problem(("sweep", "zip"), f"lists of different length: {listed}", "lists of equal length")
    elif swept.zip:
        rows = list(zip(*swept.zip.values(), strict=True))
        first = next(iter(swept.zip))
        yield from _repeated(rows, ("sweep", "zip", first))
    for index, cell in enumerate(swept.cells):
        if not cell:
            yield Problem(("sweep", "list", index), "a cell that sets nothing", "a mapping of paths to values")
    yield from _repeated(swept.cells, ("sweep", "list"))


def _repeated(values: Sequence[Any], path: Keys) -> Iterator[Problem]:
    seen: dict[str, int] = {}
    for index, value in enumerate(values):
        # repr tells 1, 1.0, true and "1" apart; what the models make equal is found when cells are resolved.
        earlier = seen.setdefault(repr(value), index)
        if earlier != index:
            shown = describe(value) if not isinstance(value, tuple | dict) else "a cell"
            yield Problem((*path, index), f"{shown} stands twice in the sweep", "each once")


def sweepable(names: Names, path: str) -> bool:
    """Whether cells may differ in the value at a dotted path."""
    head, *rest = path.split(".")
    if not rest or path == "engine.name":
        return False
    if head == "engine":
        return names.engine is None or resolves(names.engine, rest)
    return head in SWEEPABLE and resolves(SWEEPABLE[head], rest)


def _swept_path(names: Names, choice: sweep.Choice, swept_paths: Sequence[str]) -> Iterator[Problem]:
    path, place = choice.path, choice.place[:3] if choice.place[1] != "list" else choice.place
    outer = next((p for p in swept_paths if path.startswith(f"{p}.")), "")
    if outer:
        yield Problem(place, f"'{path}' is swept, and '{outer}' as well", "one of the two", at_key=True)
    if path in {"engine.name", "engine"}:
        expected = "a spec for each engine, or a field of this one"
        yield Problem(place, "the engine itself cannot be swept", expected, at_key=True)
    elif not sweepable(names, path):
        known = [f"{section}.{name}" for section, model in SWEEPABLE.items() for name in fields(model)]
        known += [f"engine.{name}" for name in fields(names.engine) if name != "name"] if names.engine else []
        head, _, tail = path.partition(".")
        within = [k for k in known if k.startswith(f"{head}.")]
        meant = nearest(tail, [k.partition(".")[2] for k in within])
        hint = f"{head}.{meant}" if meant else "" if within else nearest(path, known)
        what = f"cannot sweep '{path}'"
        yield Problem(place, what, f"one of: {', '.join(within or known)}", hint, at_key=True)


# --- tables and expectations


def _table(names: Names, table: Mapping[str, Any], path: Keys) -> Iterator[Problem]:
    stated = table.get("value")
    chosen = stated if isinstance(stated, list) else [stated]
    for index, name in enumerate(chosen):
        if isinstance(name, str) and name:
            yield from _metric(names, name, (*path, "value", index) if isinstance(stated, list) else (*path, "value"))
    labels = _labels(names, [m for m in chosen if isinstance(m, str)])
    for key in ("rows", "columns"):
        if isinstance(table.get(key), str) and table[key]:
            yield from _coordinate(names, table[key], labels, (*path, key))
    yield from _selections(names, table, labels, path)
    yield from _reference(table.get("reference"), (*path, "reference"), cell=False)


def _expectation(names: Names, expectation: Mapping[str, Any], path: Keys) -> Iterator[Problem]:
    name = expectation.get("metric")
    metric = names.metrics.get(name) if isinstance(name, str) else None
    if isinstance(name, str):
        yield from _metric(names, name, (*path, "metric"))
    yield from _selections(names, expectation, _labels(names, [metric.name] if metric else []), path)
    if metric:
        yield from _bounds(metric, expectation, path)
    yield from _reference(expectation.get("reference"), (*path, "reference"), cell=True)


def _metric(names: Names, name: str, path: Keys) -> Iterator[Problem]:
    if name not in names.metrics:
        listed = ", ".join(names.metrics) or "none"
        yield Problem(
            path, f"no metric {name!r}", f"one that the engine declares: {listed}", nearest(name, names.metrics)
        )


def _labels(names: Names, chosen: Sequence[str]) -> list[str]:
    known = [names.metrics[name] for name in chosen if name in names.metrics] or list(names.metrics.values())
    return list(dict.fromkeys(label for metric in known for label in metric.labels))


def _coordinate(names: Names, key: str, labels: Sequence[str], path: Keys) -> Iterator[Problem]:
    if not names.is_coordinate(key, labels):
        known = names.coordinates(labels)
        listed = ", ".join([*labels, *sweep.paths(names.sweep), *COORDINATES])
        what = f"'{key}' is no label of the metric and no path of the spec"
        in_mapping = path[-1] == key
        yield Problem(path, what, f"one of: {listed}", nearest(key, known), at_key=in_mapping)


def _selections(names: Names, item: Mapping[str, Any], labels: Sequence[str], path: Keys) -> Iterator[Problem]:
    values: dict[str, list[Any]] = {}
    for choice in sweep.choices(names.sweep):
        values.setdefault(choice.path, []).append(choice.value)
    for selection in ("where", "baseline"):
        chosen = item.get(selection)
        for key, value in chosen.items() if isinstance(chosen, dict) else ():
            place = (*path, selection, key)
            yield from _coordinate(names, key, labels, place)
            if key in values and not any(str(value) == str(v) or sweep.equal(value, v) for v in values[key]):
                shown = [str(v) for v in values[key]]
                hint = nearest(str(value), shown)
                yield Problem(place, f"no cell has '{key}' = {value}", f"one of: {', '.join(shown[:12])}", hint)


def _bounds(metric: Metric, expectation: Mapping[str, Any], path: Keys) -> Iterator[Problem]:
    stated = [
        name for name in ("at_least", "at_most", "equals") if isinstance(expectation.get(name), int | float | str)
    ]
    if not stated:
        return
    from harness.judging.comparison import quantity

    unit = "x" if expectation.get("baseline") else metric.unit
    read: dict[str, float] = {}
    for name in stated:
        value = expectation[name]
        try:
            read[name] = quantity(value, unit)
        except ValueError as error:
            what, _, expected = str(error).partition("; expected ")
            place = (*path, name)
            yield Problem(place, f"'{dotted(place)}' is {describe(value)}: {what}", expected)
    least, most = read.get("at_least", -math.inf), read.get("at_most", math.inf)
    if least > most:
        what = f"no value is at least {expectation['at_least']} and at most {expectation['at_most']}"
        yield Problem((*path, "at_most"), what, "a bound that is not below the other")


def _reference(address: Any, path: Keys, *, cell: bool) -> Iterator[Problem]:
    if not isinstance(address, str) or not address:
        return
    from harness import references

    published = references.load_all()
    try:
        published.find(address) if cell else published.select(address)
    except SpecError as error:
        yield from _placed(error, path)
