"""From a file to an experiment that can be run, or every reason why it cannot.

The stages: read the file and what it `extends`, lay `--set` overrides over it, validate each section against its model
and the engine's section against the named engine's `Spec` (no other engine is imported), try every value of the sweep
in its place, and look up every name. Problems of all stages are collected, placed and sorted by line.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from harness import registry
from harness.errors import Problem, SpecError
from harness.loading import consistency, sweep
from harness.loading.document import Document, Keys, read
from harness.loading.grafting import with_value
from harness.loading.inherit import also, read_with_bases
from harness.loading.overrides import ORIGIN, apply
from harness.loading.validation import describe, dotted, problems
from harness.spec import Experiment, Sweep

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from harness.api import EngineSpec
    from harness.registry import EngineEntry

Model = TypeVar("Model", bound=BaseModel)
Places = dict[Keys, Keys]
"""Path of a swept value to where the sweep has it."""


@dataclass(frozen=True)
class Loaded:
    """A spec without mistakes."""

    path: Path
    experiment: Experiment
    document: Document
    """Merged data with the place of every value."""
    engine: EngineEntry
    engine_spec: EngineSpec
    """The engine's section, as the first cell of the sweep has it."""
    origins: Mapping[str, str]
    """Dotted path of every value to `file:line:column`, `--set #n`, `sweep` or `default`."""
    overrides: tuple[str, ...] = ()


def load_experiment(path: Path | str, overrides: Sequence[str] = ()) -> Loaded:
    """Read and check a spec file.

    Args:
        path: the file.
        overrides: `PATH=VALUE` texts, applied in order.

    Raises:
        SpecError: everything that is wrong with it, in the order of its lines.
    """
    document = read_with_bases(Path(path))
    if not isinstance(document.data, dict):
        what = Problem(
            (), f"the document is {describe(document.data)}", "a mapping: 'schema: 1', 'name: ...' and so on"
        )
        raise SpecError(_distinct(document, [*document.problems, what]))
    document, changed = apply(document, overrides)
    checked = _Check(document, changed)
    found = [*document.problems, *checked.run()]
    if found:
        raise SpecError(_distinct(document, found))
    assert checked.experiment is not None
    assert checked.engine is not None
    assert checked.engine_spec is not None
    return Loaded(
        Path(path),
        checked.experiment,
        document,
        checked.engine,
        checked.engine_spec,
        _origins(document, checked.experiment, checked.engine_spec),
        tuple(overrides),
    )


def load_with_others(path: Path | str, overrides: Sequence[str] = ()) -> list[Loaded]:
    """A spec and, after it, those it names under `also`; the overrides are for the first alone.

    Raises:
        SpecError: everything that is wrong with the first of them that has a mistake.
    """
    found: list[Loaded] = []
    waiting = [(Path(path), tuple(overrides))]
    seen: set[Path] = set()
    while waiting:
        here, changes = waiting.pop(0)
        if here.resolve() in seen:
            continue
        seen.add(here.resolve())
        found.append(load_experiment(here, changes))
        waiting += [(other, ()) for other in also(found[-1].document, here, found[-1].experiment.also)]
    return found


def load_yaml_model(path: Path, model: type[Model]) -> Model:
    """Read a YAML file into a pydantic model.

    Raises:
        SpecError: everything that is wrong with it, in the order of its lines.
    """
    return checked(read(path), model)


def checked(document: Document, model: type[Model]) -> Model:
    """A document as a pydantic model.

    Raises:
        SpecError: everything that is wrong with it, in the order of its lines.
    """
    found = list(document.problems)
    value = None
    try:
        value = model.model_validate(document.data)
    except ValidationError as error:
        found += problems(error, document.data, model)
    if found or value is None:
        raise SpecError(_distinct(document, found))
    return value


def _distinct(document: Document, found: Iterable[Problem]) -> list[Problem]:
    """Problems with their places, each once, without what follows from a value that could not be read."""
    kept: dict[tuple[Any, str], Problem] = {}
    for problem in found:
        prefixes = (problem.path[:length] for length in range(len(problem.path) + 1))
        if problem.position is None and any(prefix in document.broken for prefix in prefixes):
            continue
        placed = problem if problem.excerpt else document.place(problem)
        kept.setdefault((placed.position, placed.what), placed)
    return list(kept.values())


class _Check:
    """One pass over a merged document, section by section, that stops at nothing."""

    def __init__(self, document: Document, changed: Sequence[Keys]) -> None:
        self.document = document
        self.data: dict[str, Any] = document.data
        self.changed = changed
        self.sweep = _sweep(self.data.get("sweep"))
        self.experiment: Experiment | None = None
        self.engine: EngineEntry | None = None
        self.engine_spec: EngineSpec | None = None

    def run(self) -> Iterator[Problem]:
        """Every problem, in no order."""
        yield from self._find_engine()
        names = consistency.Names(self.data, self.engine.Spec if self.engine else None, self.sweep)
        usable = [c for c in sweep.choices(self.sweep) if consistency.sweepable(names, c.path)]
        first = [c for c in sweep.first(self.sweep) if c in usable]
        data, places = chosen(self.data, first)
        yield from self._base(data, places)
        yield from self._engine_fields(data, places)
        yield from self._other_choices(data, [c for c in usable if c not in first])
        yield from self._swept_and_set()
        yield from consistency.problems(names)

    def _base(self, data: dict[str, Any], places: Places) -> Iterator[Problem]:
        try:
            self.experiment = Experiment.model_validate(data)
        except ValidationError as error:
            yield from moved(problems(error, data, Experiment), places)

    def _find_engine(self) -> Iterator[Problem]:
        section = self.data.get("engine")
        if not isinstance(section, dict):
            return
        name = section.get("name")
        if not isinstance(name, str):
            known = f"one of: {', '.join(registry.names())}"
            what = f"'engine.name' is {describe(name)}" if "name" in section else "missing field 'name' in 'engine'"
            yield Problem(("engine", "name"), what, known)
            return
        try:
            self.engine = registry.find(name)
        except SpecError as error:
            yield from (Problem(("engine", "name"), p.what, p.expected, p.suggestion) for p in error.problems)

    def _engine_fields(self, data: dict[str, Any], places: Places) -> Iterator[Problem]:
        if self.engine is not None:
            self.engine_spec, found = engine_section(self.engine, data["engine"])
            yield from moved(found, places)

    def _other_choices(self, data: dict[str, Any], others: Iterable[sweep.Choice]) -> Iterator[Problem]:
        """What is wrong with the values of the sweep that were not tried with the rest of the document."""
        for choice in others:
            tried, places = chosen(data, [choice])
            section = choice.path.split(".")[0]
            yield from moved(self._section_problems(section, tried), places, only=True)

    def _section_problems(self, section: str, data: dict[str, Any]) -> list[Problem]:
        if section == "engine":
            return engine_section(self.engine, data["engine"], whole=False)[1] if self.engine else []
        try:
            Experiment.model_validate(data)
        except ValidationError as error:
            return problems(error, data, Experiment)
        return []

    def _swept_and_set(self) -> Iterator[Problem]:
        swept = {tuple(path.split(".")): path for path in sweep.paths(self.sweep)}
        for path in self.changed:
            named = tuple(str(step) for step in path)
            for steps, text in swept.items():
                if named[: len(steps)] == steps or steps[: len(named)] == named:
                    yield Problem(path, f"'{text}' is swept by the spec, and overridden", "one of the two", at_key=True)


def engine_section(
    entry: EngineEntry, section: dict[str, Any], *, whole: bool = True
) -> tuple[EngineSpec | None, list[Problem]]:
    """The engine's section as its `Spec`, or what is wrong with it (paths start with `engine`).

    Without `whole` the fields are not checked against one another: not every combination of a sweep is a cell.
    """
    try:
        spec = entry.Spec.model_validate(section)
    except ValidationError as error:
        return None, problems(error, section, entry.Spec, ("engine",))
    try:
        found = list(spec.check()) if whole else []
    except Exception as error:  # an engine's mistake must not hide the user's
        return None, [Problem(("engine", "name"), f"the engine's own check failed: {type(error).__name__}: {error}")]
    return spec, [Problem(("engine", *p.path), p.what, p.expected, p.suggestion, at_key=p.at_key) for p in found]


def chosen(data: dict[str, Any], choices: Iterable[sweep.Choice]) -> tuple[dict[str, Any], Places]:
    """A document's data with values of the sweep in their places, and where those values are written."""
    places: Places = {}
    for choice in choices:
        path = choice.path.split(".")
        targets = data.get("on")
        if path[0] == "on" and isinstance(targets, list):
            paths: list[Keys] = [("on", index, *path[1:]) for index in range(len(targets))]
        else:
            paths = [tuple(path)]
        for where in paths:
            data = with_value(data, where, choice.value)
            places[where] = choice.place
    return data, places


def moved(found: Iterable[Problem], places: Places, *, only: bool = False) -> Iterator[Problem]:
    """Problems with swept values moved to where the sweep has them; with `only`, no others."""
    for problem in found:
        lengths = range(len(problem.path), 0, -1)
        root = next((problem.path[:n] for n in lengths if problem.path[:n] in places), None)
        if root is not None:
            path = (*places[root], *problem.path[len(root) :])
            yield Problem(path, problem.what, problem.expected, problem.suggestion, at_key=problem.at_key)
        elif not only:
            yield problem


def _sweep(section: Any) -> Sweep:
    """The sweep, or none where it is malformed (which the model of the whole reports)."""
    try:
        return Sweep.model_validate(section if section is not None else {})
    except ValidationError:
        return Sweep()


def _origins(document: Document, experiment: Experiment, spec: EngineSpec) -> dict[str, str]:
    resolved = experiment.model_dump(mode="json", by_alias=True)
    resolved["engine"] = spec.model_dump(mode="json", by_alias=True)
    return {dotted(path): origin(document, path) for path in leaves(resolved)}


def leaves(value: Any, path: Keys = ()) -> Iterator[Keys]:
    """Paths of everything that holds no further mapping or list."""
    inner: Iterable[tuple[str | int, Any]] = ()
    if isinstance(value, dict):
        inner = value.items()
    elif isinstance(value, list):
        inner = enumerate(value)
    empty = True
    for step, item in inner:
        empty = False
        yield from leaves(item, (*path, step))
    if empty:
        yield path


def origin(document: Document, path: Keys) -> str:
    """Where a value came from: `file:line:column`, `--set #n` or `default`."""
    spot = document.spots.get(path)
    if spot is None:
        return "default"
    file = spot.value.file
    return file if file.startswith(ORIGIN) else str(spot.value)
