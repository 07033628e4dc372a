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
    return overlay(lower, own)


def _base(document: Document, path: Path, named: str, tree: Path, chain: Sequence[Path]) -> Path:
    def refused(what: str, expected: str) -> SpecError:
        return SpecError([document.place(Problem(("extends",), what, expected))])

    try:
        base = _real(path.parent / named)
        found = base.is_file()
    except (OSError, ValueError) as error:
        raise refused(f"extends {named!r}, which is no file name: {error}", "a path relative to this file") from None
    if Path(named).is_absolute() or not base.is_relative_to(tree):
        raise refused(f"extends {named!r}, which lies outside the project", f"a relative path below {tree.name}/")
    if base in chain:
        names = " -> ".join([*(p.name for p in chain[chain.index(base) :]), base.name])
        raise refused(f"extends itself: {names}", "a base that does not lead back here")
    if len(chain) > MAX_BASES:
        raise refused(f"more than {MAX_BASES} files extend one another", "fewer bases")
    if not found:
        raise refused(f"extends {named!r}, which does not exist", "a path relative to this file")
    return base
