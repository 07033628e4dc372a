"""A trial's plan, made in this process: what `harness plan` shows and what the trial's own process will do."""

from __future__ import annotations

import importlib
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.api import Engine, Plan
    from harness.trial import Trial


def plan(trial: Trial) -> Plan:
    """Validate the engine's fields again, import the engine and let it plan.

    Raises:
        PlanError: the engine cannot do it on this hardware.
    """
    from emulation.profile import Profile

    engine: Engine = importlib.import_module(f"{trial.package}.engine").ENGINE
    # JSON mode: a dump holds lists and unit strings where the strict models have tuples and numbers.
    spec = engine.Spec.model_validate_json(json.dumps(trial.engine_fields))
    return engine.plan(spec, Profile.model_validate_json(json.dumps(trial.profile)))
