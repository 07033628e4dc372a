"""From a trial to its engine and plan, the same in `harness plan` and in the trial's own process."""

from __future__ import annotations

import importlib
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from emulation.profile import Profile
    from harness.api import Engine, EngineSpec, Plan
    from harness.trial import Trial


def prepared(trial: Trial) -> tuple[EngineSpec, Engine, Profile]:
    """A trial's fields validated again, its engine imported, and its hardware profile."""
    from emulation.profile import Profile

    # JSON mode: a dump holds lists and unit strings where the strict models have tuples and numbers.
    specs = importlib.import_module(f"{trial.package}.spec")
    spec = specs.Spec.model_validate_json(json.dumps(trial.engine_fields))
    profile = Profile.model_validate_json(json.dumps(trial.profile))
    return spec, importlib.import_module(f"{trial.package}.engine").ENGINE, profile


def plan(trial: Trial) -> Plan:
    """Let the engine plan.

    Raises:
        PlanError: the engine cannot do it on this hardware.
    """
    spec, engine, profile = prepared(trial)
    return engine.plan(spec, profile)
