"""From a spec to its trials: the sweep expanded, targets bound, `auto` decided, every default filled in, keys taken.

Nothing is decided after this stage. The order is that of the targets, and within a target that of the sweep's cells.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from harness import hardware
from harness.errors import Problem, SpecError
from harness.load import Loaded, chosen, engine_section, moved
from harness.loading import sweep, targets
from harness.loading.keys import key_parts, place, run_key
from harness.loading.validation import problems
from harness.records import TargetStamp
from harness.spec import Experiment
from harness.trial import Trial

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from emulation.profile import Profile
    from harness.api import EngineSpec
    from harness.backends.base import Capabilities
    from harness.spec import Target

_COMMON = frozenset({"sweep", "tables", "expect"})
"""Sections that no cell differs in."""
MOST_PROBLEMS = 20
"""Cells that are refused before the others are no longer looked at."""


def resolve(loaded: Loaded, *, on: str = "") -> list[Trial]:
    """Every trial of a spec.

    Args:
        loaded: the spec.
        on: what `targets.parse` reads, or empty for what the spec says.

    Raises:
        SpecError: `on` is none of these, cells are refused, no cell is left, or two cells are the same trial.
    """
    wish = targets.parse(on, sweep.paths(loaded.experiment.sweep))
    binder = _Binder(loaded, on)
    cells = list(_resolved_cells(loaded))
    by_target: dict[int, list[Trial]] = {}
    for cell in cells:
        for index, target in enumerate(targets.wanted(cell.experiment, wish)):
            by_target.setdefault(index, []).append(binder.trial(cell, target, index))
    trials = [trial for index in sorted(by_target) for trial in by_target[index]]
    return list(_without_twins(loaded, trials))


@dataclass(frozen=True)
class _ResolvedCell:
    cell: sweep.Cell
    experiment: Experiment
    spec: EngineSpec
    dump: Mapping[str, Any]
    """JSON form of the whole spec; what cells have in common is one object."""


def _resolved_cells(loaded: Loaded) -> Iterator[_ResolvedCell]:
    """Each cell validated as a whole: a combination can be wrong whose values are right one by one."""
    cells = sweep.expand(loaded.experiment.sweep)
    if not cells:
        what = Problem(("sweep", "exclude"), "every cell of the sweep is excluded", "a cell that is left")
        raise SpecError([loaded.document.place(what)])
    base = loaded.experiment.model_dump(mode="json", by_alias=True)
    base |= {"engine": loaded.engine_spec.model_dump(mode="json", by_alias=True), "sweep": {}}
    found: list[Problem] = []
    for cell in cells:
        if not cell.choices:
            yield _ResolvedCell(cell, loaded.experiment, loaded.engine_spec, base)
            continue
        resolved, wrong = _resolve_cell(loaded, cell, base)
        found += wrong
        if len(found) >= MOST_PROBLEMS:
            break
        if resolved is not None:
            yield resolved
    if found:
        raise SpecError(dict.fromkeys(found))


def _resolve_cell(
    loaded: Loaded, cell: sweep.Cell, base: Mapping[str, Any]
) -> tuple[_ResolvedCell | None, list[Problem]]:
    data, places = chosen(loaded.document.data, cell.choices)
    heads = {choice.path.split(".")[0] for choice in cell.choices}
    experiment, spec = loaded.experiment, loaded.engine_spec
    dump = dict(base)
    found: list[Problem] = []
    if "engine" in heads:
        made, found = engine_section(loaded.engine, data["engine"])
        spec = made or spec
        dump["engine"] = spec.model_dump(mode="json", by_alias=True)
    if heads - {"engine"}:
        try:
            # The sweep itself is not part of a cell; to validate and keep it for each would be quadratic.
            experiment = Experiment.model_validate({k: v for k, v in data.items() if k not in _COMMON})
        except ValidationError as error:
            found += problems(error, data, Experiment)
        dump |= experiment.model_dump(mode="json", by_alias=True, include=heads - {"engine"})
    if found:
        placed = (loaded.document.place(p) for p in moved(found, places))
        return None, [_in_cell(problem, cell) for problem in placed]
    return _ResolvedCell(cell, experiment, spec, dump), []


def _in_cell(problem: Problem, cell: sweep.Cell) -> Problem:
    what = f"{problem.what} (cell {cell.name})"
    return Problem(problem.path, what, problem.expected, problem.suggestion, problem.position, problem.excerpt)


@dataclass
class _Binder:
    """Makes trials; what it has looked up for one it keeps for the next."""

    loaded: Loaded
    on: str
    profiles: dict[str, tuple[Profile, dict[str, Any]]] = field(default_factory=dict)
    places: dict[str, dict[str, Any]] = field(default_factory=dict)
    origins: dict[tuple[int, tuple[str, ...]], dict[str, str]] = field(default_factory=dict)
    fitting: set[tuple[str, str]] = field(default_factory=set)
    """Hardware and faults that it has everything for."""

    @cached_property
    def here(self) -> Capabilities:
        """What this machine has."""
        from harness.backends import capabilities

        return capabilities("local")

    def trial(self, cell: _ResolvedCell, target: Target, index: int) -> Trial:
        """The trial of a cell on a target."""
        if target.backend != "auto":
            return self._trial(cell, TargetStamp(backend=target.backend, hardware=target.hardware), index)
        from harness.backends.base import lacks

        reason = "auto: this machine has what the spec needs"
        real = self._trial(cell, TargetStamp(backend="local", hardware=target.hardware, reason=reason), index)
        missing = lacks(real, self.here)
        if not missing:
            return real
        reason = f"auto: this machine lacks what the spec needs ({missing})"
        return self._trial(cell, TargetStamp(backend="emulated", hardware=target.hardware, reason=reason), index)

    def _trial(self, cell: _ResolvedCell, stamp: TargetStamp, index: int) -> Trial:
        profile, dumped = self._profile(stamp.hardware)
        if stamp.backend in {"emulated", "softroce"} and cell.experiment.faults:
            self._check_faults(cell, stamp.hardware)
        swept = cell.cell.swept
        parts = key_parts(
            cell.experiment,
            cell.spec,
            backend=stamp.backend,
            profile=profile,
            swept=swept,
            where=self._place(stamp.backend),
        )
        return Trial(
            key=run_key(parts),
            spec=cell.experiment.name,
            cell=cell.cell.name,
            swept=swept,
            target=stamp,
            resolved={**cell.dump, "on": {"backend": stamp.backend, "hardware": stamp.hardware}},
            origins=self._origins(tuple(swept), index),
            engine=self.loaded.engine.name,
            engine_version=cell.spec.VERSION,
            package=self.loaded.engine.package,
            engine_fields=cell.dump["engine"],
            profile=dumped,
            ranks=cell.spec.ranks(),
            repeat=cell.experiment.repeat,
            limits=cell.experiment.limits,
            needs=cell.experiment.needs,
            packages=cell.spec.packages(),
            faults=cell.dump["faults"],
            key_parts=parts,
        )

    def _check_faults(self, cell: _ResolvedCell, hardware_name: str) -> None:
        """Refuse faults of what the emulated cluster does not have.

        Raises:
            SpecError: each with its place.
        """
        from emulation.faults import check
        from emulation.topology import Topology

        faults = cell.experiment.faults
        if (hardware_name, repr(faults)) in self.fitting:
            return
        wrong = list(check(faults, Topology(self._profile(hardware_name)[0])))
        if wrong:
            _, places = chosen(self.loaded.document.data, cell.cell.choices)
            found = [Problem(("faults", *e.path), e.what, suggestion=e.nearest) for e in wrong]
            placed = [self.loaded.document.place(problem) for problem in moved(found, places)]
            raise SpecError(_in_cell(problem, cell.cell) if cell.cell.choices else problem for problem in placed)
        self.fitting.add((hardware_name, repr(faults)))

    def _profile(self, name: str) -> tuple[Profile, dict[str, Any]]:
        if name not in self.profiles:
            profile = hardware.load_profile(name)
            self.profiles[name] = (profile, profile.model_dump(mode="json", by_alias=True))
        return self.profiles[name]

    def _place(self, backend: str) -> dict[str, Any]:
        if backend not in self.places:
            self.places[backend] = place(backend, self.on)
        return self.places[backend]

    def _origins(self, swept: tuple[str, ...], index: int) -> dict[str, str]:
        known = (index, swept)
        if known not in self.origins:
            written = self.loaded.origins
            found = {path: origin for path, origin in written.items() if not path.startswith(("on.", "sweep."))}
            for name in ("backend", "hardware"):
                stated = written.get(f"on.{name}") or written.get(f"on.{index}.{name}", "default")
                found[f"on.{name}"] = targets.OPTION if self.on else stated
            for path in swept:
                found |= {p: "sweep" for p in [path, *found] if p == path or p.startswith(f"{path}.")}
            self.origins[known] = found
        return self.origins[known]


def _without_twins(loaded: Loaded, trials: list[Trial]) -> Iterator[Trial]:
    """The trials, each once. Two cells that come to the same trial are a mistake; two targets that do are one."""
    seen: dict[str, Trial] = {}
    for trial in trials:
        earlier = seen.setdefault(trial.key, trial)
        if earlier is trial:
            yield trial
        elif earlier.cell != trial.cell:
            what = f"cells {earlier.cell} and {trial.cell} are the same trial"
            problem = Problem(("sweep",), what, "values that differ once they are read")
            raise SpecError([loaded.document.place(problem)])
