"""What guests of the harness hold besides their image: its Python packages in this machine's versions, and its code."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import EnvironmentLacks

if TYPE_CHECKING:
    from collections.abc import Iterable

    from emulation.softroce import Layer

PACKAGES = (
    "filelock",
    "grpcio",
    "ibverbs",
    "networkx",
    "numpy",
    "protobuf",
    "psutil",
    "pydantic",
    "pyyaml",
    "quantiphy",
    "rich",
    "simpy",
)
"""What a rank of a trial may import without its engine asking for more."""


def layers(more: Iterable[str] = ()) -> tuple[Layer, ...]:
    """The disks of packages, built where they are not yet.

    Args:
        more: distributions beyond `PACKAGES`; they share a disk of their own.

    Raises:
        EnvironmentLacks: one of `more` is not installed here, so that its version is anybody's guess.
        SoftRoceError: they cannot be had for the guests' Python.
    """
    from emulation.softroce import Layer

    extra = tuple(sorted({_folded(name) for name in more} - set(PACKAGES)))
    missing = [name for name in extra if not _version(name)]
    if missing:
        raise EnvironmentLacks(f"guests get packages in this machine's versions, and it lacks {', '.join(missing)}")
    found = [Layer.build("packages", requirements(PACKAGES))]
    if extra:
        found.append(Layer.build("more", requirements(extra)))
    return tuple(found)


def requirements(names: Iterable[str]) -> tuple[str, ...]:
    """Each distribution in the version this machine has, so that both sides speak alike; any where it has none."""
    return tuple(f"{name}=={version}" if (version := _version(name)) else name for name in names)


def code(*modules: str) -> tuple[Path, ...]:
    """The folders that hold the harness and further top-level modules.

    Args:
        modules: import names.
    """
    from importlib.util import find_spec

    found = {Path(__file__).resolve().parents[1]: None}
    for module in modules:
        spec = find_spec(module.partition(".")[0])
        for place in spec.submodule_search_locations or [] if spec else []:
            found[Path(place).resolve().parent] = None
    return tuple(found)


def _folded(name: str) -> str:
    return name.strip().lower().replace("_", "-")


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""
