"""Putting one piece of a document into another without losing where each value was written.

Three things do so: `extends` lays a file over its base, `--set` replaces one value, and a sweep chooses values. None
of them changes a document in place; each gives a new one, whose parts still say `file:line:column`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from harness.loading.document import Document, Keys, Spot


def graft(document: Document, path: Keys, piece: Document, *, keys: Mapping[Keys, Spot]) -> Document:
    """The document with `piece` at `path`.

    Args:
        document: what is changed; maps are made on the way to `path` where there are none.
        path: where the piece goes.
        piece: what goes there.
        keys: places of the keys that name `path`: of the piece itself, and of what is made on the way to it.
    """
    spots = {where: s for where, s in document.spots.items() if where[: len(path)] != path}
    spots |= {(*path, *where): s for where, s in piece.spots.items()}
    spots = {**keys, **spots, path: keys[path]}
    return replace(
        document,
        data=with_value(document.data, path, piece.data),
        spots=spots,
        sources={**document.sources, **piece.sources},
        problems=(*_outside(document, path), *piece.problems),
        broken=frozenset(
            [*(p for p in document.broken if p[: len(path)] != path), *((*path, *p) for p in piece.broken)]
        ),
    )


def _outside(document: Document, path: Keys) -> Iterable[Any]:
    # What was wrong with a value that is replaced no longer matters.
    return (p for p in document.problems if not path or p.path[: len(path)] != path or p.path not in document.broken)


def with_value(data: Any, path: Keys, value: Any) -> Any:
    """A copy of plain data with one value put at a path; what lies beside the path is shared, not copied."""
    if not path:
        return value
    step, rest = path[0], path[1:]
    if isinstance(data, list) and isinstance(step, int) and 0 <= step < len(data):
        return [*data[:step], with_value(data[step], rest, value), *data[step + 1 :]]
    inner = dict(data) if isinstance(data, dict) else {}
    inner[str(step)] = with_value(inner.get(str(step)), rest, value)
    return inner


def overlay(base: Document, upper: Document) -> Document:
    """`upper` laid over `base`: maps are merged, lists and scalars replaced; null takes the base's value away."""
    gone: set[Keys] = set()
    nulls: set[Keys] = set()
    data = _merge((), base.data, upper.data, gone, nulls)
    below = {where: spot for where, spot in base.spots.items() if not _within(where, gone | nulls)}
    spots = below | {where: spot for where, spot in upper.spots.items() if where not in nulls}
    kept = tuple(p for p in base.problems if p.path in below or p.path not in base.broken)
    return replace(
        upper,
        data=data,
        spots=spots,
        sources={**base.sources, **upper.sources},
        problems=(*kept, *upper.problems),
        broken=frozenset(p for p in base.broken if p in below) | upper.broken,
    )


def _within(where: Keys, roots: set[Keys]) -> bool:
    return any(where[:length] in roots for length in range(1, len(where) + 1))


def _merge(path: Keys, base: dict[str, Any], upper: dict[str, Any], gone: set[Keys], nulls: set[Keys]) -> Any:
    """Merged data; `gone` collects the base's values that are replaced, `nulls` those that are taken away."""
    merged = dict(base)
    for key, value in upper.items():
        inner = (*path, key)
        if key in base and isinstance(base[key], dict) and isinstance(value, dict):
            merged[key] = _merge(inner, base[key], value, gone, nulls)
        elif key in base and value is None:
            del merged[key]
            nulls.add(inner)
        else:
            merged[key] = value
            gone.add(inner)
    return merged
