"""Engines, found by name.

The built-in engines stand in a literal table, so that looking one up costs a dictionary access. Any other name is
looked for among the entry points of group `harness.engines` of the installed distributions; the value of an entry
point is the package that holds the modules `spec` and `engine`::

    [project.entry-points."harness.engines"]
    memcopy = "memcopy"

An engine need not be installed: a folder on `PYTHONPATH` with its `*.dist-info` (what `pip install --target` makes)
is found too. Only the `spec` module of the engine that is asked for is imported, and one that cannot be imported is
listed with its error and leaves the others alone.
"""

from __future__ import annotations

import importlib
import warnings
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from harness.api import EngineSpec
from harness.errors import SpecError, nearest

if TYPE_CHECKING:
    from collections.abc import Mapping

GROUP = "harness.engines"
BUILT_IN: Mapping[str, str] = MappingProxyType(
    {"rdma": "engines.rdma", "megatron": "engines.megatron", "superscaler": "engines.superscaler"}
)
"""Name to package."""


@dataclass(frozen=True)
class EngineEntry:
    """An engine whose specs can be validated."""

    name: str
    package: str
    """Import path of the package; its `spec` module has been imported, its `engine` module has not."""
    Spec: type[EngineSpec]


@dataclass(frozen=True)
class Listing:
    """One line of `harness ls engines`."""

    name: str
    package: str
    built_in: bool
    error: str = ""
    """Why it cannot be used, or empty."""


def find(name: str) -> EngineEntry:
    """The engine of this name.

    Raises:
        SpecError: there is none (with the nearest name), several packages claim the name, or it cannot be imported.
    """
    if name in BUILT_IN:
        return EngineEntry(name, BUILT_IN[name], _spec_class(BUILT_IN[name]))
    packages = _installed().get(name, [])
    if not packages:
        known = names()
        raise SpecError.single(
            f"no engine {name!r}", expected=f"one of: {', '.join(known)}", suggestion=nearest(name, known)
        )
    if len(packages) > 1:
        raise SpecError.single(
            f"several packages provide an engine {name!r}: {', '.join(packages)}", expected="one of them installed"
        )
    return EngineEntry(name, packages[0], _spec_class(packages[0]))


def names() -> list[str]:
    """Every name that can be asked for: the built-in engines, then the installed ones."""
    return [*BUILT_IN, *sorted(set(_installed()) - set(BUILT_IN))]


def listing() -> list[Listing]:
    """Every engine with the error that keeps it from being used, if there is one."""
    rows = [Listing(name, package, built_in=True, error=_error(package)) for name, package in BUILT_IN.items()]
    for name, packages in sorted(_installed().items()):
        if name in BUILT_IN:
            _warn_of_clash(name, packages)
            continue
        ambiguous = f"also provided by {', '.join(packages[1:])}" if len(packages) > 1 else ""
        rows.append(Listing(name, packages[0], built_in=False, error=ambiguous or _error(packages[0])))
    return rows


def _warn_of_clash(name: str, packages: list[str]) -> None:
    warnings.warn(
        f"engine {name!r} of {', '.join(packages)} is hidden by the built-in engine of the same name", stacklevel=3
    )


def _installed() -> dict[str, list[str]]:
    """Name to the packages that claim it. Imports `importlib.metadata`, which costs more than all else here."""
    from importlib.metadata import entry_points

    found: dict[str, list[str]] = {}
    for point in entry_points(group=GROUP):
        packages = found.setdefault(point.name, [])
        if point.value not in packages:
            packages.append(point.value)
    return found


def _spec_class(package: str) -> type[EngineSpec]:
    try:
        found = importlib.import_module(f"{package}.spec").Spec
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {error}"
        raise SpecError.single(f"the engine's module {package}.spec cannot be imported: {reason}") from error
    if not (isinstance(found, type) and issubclass(found, EngineSpec)):
        raise SpecError.single(f"{package}.spec.Spec is not a harness.api.EngineSpec")
    return found


def _error(package: str) -> str:
    try:
        _spec_class(package)
    except SpecError as error:
        return error.problems[0].what
    return ""
