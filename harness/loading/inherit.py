"""`extends`: a spec that starts from another file.

The base is named relative to the file that extends it and must lie in the same project. Bases may have bases, up to a
depth; a file that comes to extend itself is refused with the whole chain.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from harness import project
from harness.errors import Problem, SpecError
from harness.loading.document import Document, read
from harness.loading.grafting import overlay

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.loading.document import Keys

MAX_BASES = 16


def read_with_bases(path: Path) -> Document:
    """Read a spec file and everything it extends, merged; each value keeps the file and line it came from.

    Raises:
        SpecError: a file cannot be read, or an `extends` is wrong.
    """
    return _read(path, str(path), _tree(path), ())


def _tree(path: Path) -> Path:
    """The folder that no base may lie outside of."""
    folder = _real(path).parent
    root = project.root(folder)
    return root if folder.is_relative_to(root) else folder


def _real(path: Path) -> Path:
    """The path without symbolic links; links that lead in a circle are left for whoever opens the file."""
    return Path(os.path.realpath(path))


def _read(path: Path, shown: str, tree: Path, chain: Sequence[Path]) -> Document:
    document = read(path, shown=shown)
    if not isinstance(document.data, dict) or "extends" not in document.data:
        return document
    named = document.data["extends"]
    data = {key: value for key, value in document.data.items() if key != "extends"}
    own = replace(document, data=data)
    if named == "" or not isinstance(named, str):
        # The empty default is left out; of another type, the model says what is wrong.
        return document if named != "" else own
    here = [*chain, _real(path)]
    base = _base(document, path, named, tree, here)
    lower = _read(base, os.path.relpath(base) if not Path(shown).is_absolute() else str(base), tree, here)
    if not isinstance(lower.data, dict):
        raise SpecError([lower.place(Problem((), "a base that is not a mapping", "a spec"))])
    # What else the base would have run is the base's affair, and named relative to it.
    lower = replace(lower, data={key: value for key, value in lower.data.items() if key != "also"})
    return overlay(lower, own)


def _base(document: Document, path: Path, named: str, tree: Path, chain: Sequence[Path]) -> Path:
    def refused(what: str, expected: str) -> SpecError:
        return SpecError([document.place(Problem(("extends",), what, expected))])

    base = neighbour(document, path, named, tree, ("extends",), "extends")
    if base in chain:
        names = " -> ".join([*(p.name for p in chain[chain.index(base) :]), base.name])
        raise refused(f"extends itself: {names}", "a base that does not lead back here")
    if len(chain) > MAX_BASES:
        raise refused(f"more than {MAX_BASES} files extend one another", "fewer bases")
    if not base.is_file():
        raise refused(f"extends {named!r}, which does not exist", "a path relative to this file")
    return base


def also(document: Document, path: Path, names: Sequence[str]) -> list[Path]:
    """The files that a spec names under `also`, in order.

    Raises:
        SpecError: one does not exist, or lies outside the project.
    """
    found = []
    for number, named in enumerate(names):
        place = ("also", number)
        other = neighbour(document, path, named, _tree(path), place, "names")
        if not other.is_file():
            what = f"names {named!r}, which does not exist"
            raise SpecError([document.place(Problem(place, what, "a path relative to this file"))])
        found.append(Path(os.path.relpath(other)) if not path.is_absolute() else other)
    return found


def neighbour(document: Document, path: Path, named: str, tree: Path, place: Keys, verb: str) -> Path:
    """The file of the same project that a spec names, whether it exists or not.

    Raises:
        SpecError: no file can have that name, or it lies outside the project.
    """
    try:
        found = _real(path.parent / named)
    except (OSError, ValueError) as error:
        what = f"{verb} {named!r}, which is no file name: {error}"
        raise SpecError([document.place(Problem(place, what, "a path relative to this file"))]) from None
    if Path(named).is_absolute() or not found.is_relative_to(tree):
        what = f"{verb} {named!r}, which lies outside the project"
        raise SpecError([document.place(Problem(place, what, f"a relative path below {tree.name}/"))])
    return found
