"""What one process of a trial is told to do, as a file it can be started from again by hand.

A trial that needs several ranks has one assignment a rank. `python -m harness.execution.child DIRECTORY` carries out
the `trial.json` found there, under a debugger if need be; the harness itself starts trials in the same way.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from harness.trial import Trial

if TYPE_CHECKING:
    from pathlib import Path

    from pydantic import BaseModel

FILE = "trial.json"


@dataclass(frozen=True)
class Assignment:
    """One rank's share of a trial; every path is absolute."""

    trial: Trial
    mode: Literal["run", "predict"]
    rank: int
    world_size: int
    address: str
    """The address under which the other ranks reach this one."""
    rendezvous: str
    scratch: str
    artifacts: str
    data_limit: int = 0
    """Bytes of private writable memory the process may map beyond what it has at the start; 0 is no limit."""

    def write(self, directory: Path) -> None:
        """Put `trial.json` into `directory`."""
        text = json.dumps({**_shallow(self), "trial": dump(self.trial)}, indent=1)
        (directory / FILE).write_text(text, "utf-8")

    @classmethod
    def read(cls, directory: Path) -> Assignment:
        """The assignment in `directory`."""
        content = json.loads((directory / FILE).read_text("utf-8"))
        return cls(**{**content, "trial": load(content["trial"])})


def dump(trial: Trial) -> dict[str, Any]:
    """A trial as JSON values."""
    out = _shallow(trial)
    for name in ("target", "repeat", "limits", "needs"):
        out[name] = getattr(trial, name).model_dump(mode="json")
    return out


def load(content: dict[str, Any]) -> Trial:
    """The trial that `dump` was given."""
    from harness.records import TargetStamp
    from harness.spec import Limits, Needs, RepeatSpec

    models: dict[str, type[BaseModel]] = {"target": TargetStamp, "repeat": RepeatSpec, "limits": Limits, "needs": Needs}
    typed = {name: model.model_validate_json(json.dumps(content[name])) for name, model in models.items()}
    return Trial(
        **{**content, **typed, "import_path": tuple(content["import_path"]), "packages": tuple(content["packages"])}
    )


def _shallow(value: Any) -> dict[str, Any]:
    return {f.name: getattr(value, f.name) for f in fields(value)}
