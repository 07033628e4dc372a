"""Where things are: specs, hardware profiles, published tables, results."""

from __future__ import annotations

from pathlib import Path

MARKERS = ("specs", "results")


def root(start: Path | None = None) -> Path:
    """The project that `start` (default: the working directory) lies in, else the one this package came with."""
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        if all((folder / name).is_dir() for name in MARKERS):
            return folder
    return Path(__file__).resolve().parent.parent


def hardware(start: Path | None = None) -> Path:
    """Folder of hardware profiles."""
    return root(start) / "specs" / "hardware"


def published(start: Path | None = None) -> Path:
    """Folder of published tables."""
    return root(start) / "results" / "published"


def runs(start: Path | None = None) -> Path:
    """Folder of run directories, unless the command line names another."""
    return root(start) / "results" / "runs"
