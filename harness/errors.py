"""What can go wrong, as one tree.

::

    HarnessError                 exit code 1
    ├── SpecError                exit code 2: a spec, an override or a command line is wrong
    ├── EnvironmentLacks         exit code 3: this machine or cluster lacks a need; nothing ran
    ├── PlanError                an engine cannot plan this spec on this hardware
    ├── Aborted                  an emulated run did not get to its end, because of a fault of the spec
    ├── BackendError             a backend could not start or lost a trial
    └── StoreError               a record could not be written or read

Every message says what was wrong, where, and what to do about it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class Exit(IntEnum):
    """Exit codes of the command line."""

    OK = 0
    FAILED = 1
    BAD_SPEC = 2
    LACKS_NEED = 3
    INTERRUPTED = 130


class HarnessError(Exception):
    """Base of every error the harness raises on purpose."""

    exit_code: Exit = Exit.FAILED


@dataclass(frozen=True, order=True)
class Position:
    """A place in a text file; lines and columns count from 1."""

    file: str
    line: int
    column: int = 1
    length: int = field(default=1, compare=False)
    """How many characters the caret underlines."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@dataclass(frozen=True)
class Problem:
    """One mistake in a spec, a profile or a reference file.

    `path` is the place in the document as keys and indices (`("engine", "sizes", 2)`); the loader turns it into
    a `Position`. An engine's `check()` fills only `path`, `what`, `expected` and `suggestion`.
    """

    path: tuple[str | int, ...]
    what: str
    expected: str = ""
    suggestion: str = ""
    position: Position | None = None
    excerpt: str = ""
    """The source lines around the mistake with a caret under it, ready to print."""
    at_key: bool = False
    """Whether the key itself is the mistake, rather than the value under it."""

    def __str__(self) -> str:
        where = str(self.position) if self.position else ".".join(map(str, self.path)) or "harness"
        parts = [f"{where}: error: {self.what}"]
        if self.expected:
            parts.append(f"expected {self.expected}")
        if self.suggestion:
            parts.append(f"did you mean {self.suggestion!r}?")
        head = "; ".join(parts)
        return f"{head}\n{self.excerpt}" if self.excerpt else head


class SpecError(HarnessError):
    """Everything wrong with one input, in the order of its lines."""

    exit_code = Exit.BAD_SPEC

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems: tuple[Problem, ...] = tuple(
            sorted(problems, key=lambda p: (p.position is None, p.position or Position("", 0), p.what))
        )
        super().__init__("\n".join(map(str, self.problems)))

    @classmethod
    def single(
        cls, what: str, *, expected: str = "", suggestion: str = "", position: Position | None = None
    ) -> SpecError:
        """One mistake that has no place in a document, or one known place."""
        return cls([Problem((), what, expected, suggestion, position)])


class EnvironmentLacks(HarnessError):
    """The machine or cluster lacks something the spec needs."""

    exit_code = Exit.LACKS_NEED


class Aborted(HarnessError):
    """An emulated run that did not get to its end."""


class PlanError(HarnessError):
    """An engine cannot plan this spec on this hardware (say which limit is broken and by how much)."""


class BackendError(HarnessError):
    """A backend could not be started, or lost a trial for a reason outside the trial."""


class StoreError(HarnessError):
    """A record or the index could not be written or read; what was recorded before is intact."""


def nearest(word: str, choices: Iterable[str]) -> str:
    """The choice a typist most likely meant, or an empty string."""
    import difflib

    candidates = list(choices)
    found = difflib.get_close_matches(word, candidates, n=1, cutoff=0.6)
    if found:
        return found[0]
    folded = {c.casefold(): c for c in candidates}
    return folded.get(word.casefold(), "")
