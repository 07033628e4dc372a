"""The run key: one name for everything that can change a trial's numbers, and for nothing else.

Two trials with equal keys would give the same result, so one record serves both; that is how an interrupted run is
resumed. The key is the SHA-256 of canonical JSON over the parts below. Values are taken after validation, defaults
included, so that 1 and 1.0 in a field of numbers, the order of keys in a file and a default written out make no
difference, and a changed default does.

Not part of the key: name, description, paper, tables, expectations, limits, and fields an engine lists as `UNHASHED`.
They become a part only where a sweep makes cells differ in nothing else.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from harness.canonical import digest
from harness.spec import SCHEMA_VERSION

if TYPE_CHECKING:
    from collections.abc import Mapping

    from emulation.profile import Profile
    from harness.api import EngineSpec
    from harness.spec import Experiment

RAY_SCHEME = "ray://"


def key_parts(
    experiment: Experiment,
    spec: EngineSpec,
    *,
    backend: str,
    profile: Profile,
    swept: Mapping[str, Any],
    where: Mapping[str, Any],
) -> dict[str, Any]:
    """Everything the key is taken over.

    Args:
        experiment: the spec of one cell.
        spec: the engine's section of the same cell.
        backend: `local`, `emulated`, `ray` or `softroce`.
        profile: the hardware profile.
        swept: path to value of the cell.
        where: what `place` says of the backend.
    """
    fields = spec.model_dump(mode="json", by_alias=True)
    unhashed = {path: value for path, value in swept.items() if not _hashed(path, spec)}
    parts = {
        "schema": SCHEMA_VERSION,
        "engine": {
            "name": spec.name,
            "version": spec.VERSION,
            "fields": {name: value for name, value in fields.items() if name not in {*spec.UNHASHED, "name"}},
        },
        "backend": backend,
        "hardware": profile.digest,
        "where": dict(where),
        "repeat": experiment.repeat.model_dump(mode="json"),
        "needs": experiment.needs.model_dump(mode="json"),
        "faults": [fault.model_dump(mode="json", by_alias=True, exclude={"name"}) for fault in experiment.faults],
    }
    return parts | ({"swept": unhashed} if unhashed else {})


def run_key(parts: Mapping[str, Any]) -> str:
    """The key of a trial, as 64 hexadecimal digits."""
    return digest(dict(parts))


def place(backend: str, on: str = "") -> dict[str, Any]:
    """What stands behind a backend: the emulator's model, this machine, or the Ray cluster at an address.

    Args:
        backend: `local`, `emulated`, `ray` or `softroce`.
        on: what `--on` said; an address in it comes before `RAY_ADDRESS`.
    """
    if backend == "emulated":
        from emulation import MODEL_VERSION

        return {"model": MODEL_VERSION}
    address = on if on.startswith(RAY_SCHEME) else os.environ.get("RAY_ADDRESS", "")
    if backend == "ray" and address:
        return {"cluster": address}
    from harness.provenance import machine_fingerprint

    return {"machine": machine_fingerprint()}


def _hashed(path: str, spec: EngineSpec) -> bool:
    head, *rest = path.split(".")
    return head in {"on", "needs", "repeat", "faults"} or (head == "engine" and rest[0] not in spec.UNHASHED)
