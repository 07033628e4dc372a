"""Records that a spec no longer asks for, and what has changed since."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from harness.records import Record
    from harness.trial import Trial


@dataclass(frozen=True)
class Leftover:
    """A record with no trial of the same key."""

    record: Record
    differs: list[str]
    """`path: then -> now` against the nearest trial; empty entries never occur."""


def leftovers(records: Iterable[Record], trials: Sequence[Trial]) -> list[Leftover]:
    """Every record whose key no trial has, explained against the trial that differs in the fewest fields."""
    keys = {trial.key for trial in trials}
    return [Leftover(r, _explain(r, trials)) for r in records if r.key not in keys]


def _explain(record: Record, trials: Sequence[Trial]) -> list[str]:
    same_target = [t for t in trials if t.target.backend == record.target.backend]
    if not same_target:
        return [f"no trial runs on {record.target.backend} any more"]
    found = min((list(_differences(record.resolved, t.resolved)) for t in same_target), key=len)
    return found or ["the engine, the hardware profile, the emulator or the machine is another version"]


def _differences(then: Any, now: Any, path: str = "") -> Iterator[str]:
    if isinstance(then, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*then, *now]):
            yield from _differences(then.get(key), now.get(key), f"{path}.{key}" if path else str(key))
    elif then != now:
        yield f"{path}: {then!r} -> {now!r}"
