"""Where things are: specs, hardware profiles, published tables, results.

A project is a folder with `specs` and `results`. What it lacks is taken from what the harness came with: the checkout
it was installed from, or `share/harness` of an installed wheel. An installed wheel never writes there.
"""

from __future__ import annotations

import sys
from pathlib import Path

MARKERS = ("specs", "results")
_ABOVE = Path(__file__).resolve().parent.parent


def root(start: Path | None = None) -> Path:
    """The project that `start` (default: the working directory) lies in, the checkout of this package, or `start`."""
    here = (start or Path.cwd()).resolve()
    found = (folder for folder in (here, *here.parents, _ABOVE) if _is_project(folder))
    return next(found, here)


def shipped() -> Path:
    """The folder of what the harness came with."""
    places = (_ABOVE, _ABOVE / "share" / "harness", Path(sys.prefix) / "share" / "harness")
    return next((folder for folder in places if _is_project(folder)), _ABOVE)


def hardware(start: Path | None = None) -> Path:
    """Folder of hardware profiles."""
    return root(start) / "specs" / "hardware"


def published(start: Path | None = None) -> Path:
    """Folder of published tables: the project's, or what the harness came with where it has none."""
    own = root(start) / "results" / "published"
    return own if own.is_dir() else shipped() / "results" / "published"


def runs(start: Path | None = None) -> Path:
    """Folder of run directories, unless the command line names another."""
    return root(start) / "results" / "runs"


def _is_project(folder: Path) -> bool:
    return all((folder / name).is_dir() for name in MARKERS)
