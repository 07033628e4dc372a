"""Refusing a value of a profile, with the keys that lead to it.

A mistake is a `PydanticCustomError` whose context has `path`: the keys, below the model being validated, of the value
to blame. A loader that knows lines can point at it.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any, NoReturn

from pydantic_core import PydanticCustomError

if TYPE_CHECKING:
    from collections.abc import Iterable

Path = tuple[str | int, ...]


def refuse(path: Path, message: str, word: str = "", choices: Iterable[str] = ()) -> NoReturn:
    """Raise a validation error that blames `path`, with the nearest of `choices` to `word`.

    Raises:
        PydanticCustomError: always.
    """
    known = sorted(choices)
    near = difflib.get_close_matches(word, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; there is {', '.join(known[:8])}" if known else ""
    context: dict[str, Any] = {"text": message + hint, "path": list(path)}
    raise PydanticCustomError("profile", "{text}", context)
