"""What trials left beside their records, found again on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from harness.records import Artifact, Record
    from harness.report.content import Locate


def found(records: Sequence[Record], locate: Locate, suffix: str) -> Iterator[tuple[Record, Artifact, Path]]:
    """Every artifact with a suffix that lies in its trial's directory.

    A record is no promise: a path that leads elsewhere would put any file of the machine into a page.
    """
    for record in records:
        directory = locate(record)
        if directory is None:
            continue
        for artifact in record.artifacts:
            path = directory / artifact.path
            inside = path.resolve().is_relative_to(directory.resolve())
            if artifact.path.endswith(suffix) and inside and path.is_file():
                yield record, artifact, path
