"""From a trial and the outcome of its last attempt to its record."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from harness.canonical import digest
from harness.records import Artifact, Record

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from harness.backends.base import Outcome
    from harness.records import Attempt, Provenance
    from harness.trial import Trial


def record_of(
    trial: Trial,
    outcome: Outcome,
    *,
    started: str,
    attempts: Sequence[Attempt],
    place: Path,
    attempt: Path | None,
    provenance: Provenance,
) -> Record:
    """The record of a trial that ended with `outcome`.

    Args:
        trial: what was asked.
        outcome: of its last attempt.
        started: UTC, ISO 8601.
        attempts: every try, the last one included.
        place: the trial directory; artifact paths are relative to it.
        attempt: the last attempt's directory, if there was one.
        provenance: the circumstances.
    """
    values = list(outcome.values)
    asked = {
        "key": trial.key,
        "plan": outcome.plan_digest,
        "state": outcome.state.value,
        # As in the record file, where NaN and infinities are strings: canonical JSON can hold those.
        "values": [json.loads(v.model_dump_json()) for v in values],
    }
    return Record(
        key=trial.key,
        spec=trial.spec,
        cell=trial.cell,
        swept=trial.swept,
        target=trial.target,
        resolved=trial.resolved,
        origins=trial.origins,
        engine=trial.engine,
        engine_version=trial.engine_version,
        plan_digest=outcome.plan_digest,
        seed=trial.repeat.seed,
        state=outcome.state,
        failure=outcome.failure,
        values=values,
        emulation=outcome.emulation,
        artifacts=artifacts(place, attempt),
        result_digest=digest(asked),
        started=started,
        seconds=sum(a.seconds for a in attempts),
        attempts=list(attempts),
        provenance=provenance,
    )


def artifacts(place: Path, attempt: Path | None) -> list[Artifact]:
    """What the attempt left to be kept, in the order of paths."""
    folder = attempt / "artifacts" if attempt else None
    if folder is None or not folder.is_dir():
        return []
    files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink())
    return [Artifact(path=p.relative_to(place).as_posix(), sha256=_sha256(p), bytes=p.stat().st_size) for p in files]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
