"""Predictions: the same isolated process, with the engine's `predict` on a hardware profile."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from emulation.faults import KINDS
from harness.backends.base import Capabilities
from harness.backends.group import GRACE, RankGroup
from harness.backends.process import Zygote

if TYPE_CHECKING:
    from pathlib import Path

    from harness.backends.base import Running
    from harness.trial import Trial


class EmulatedBackend:
    """`base.Backend` for clusters nobody need own."""

    name = "emulated"

    def __init__(self, *, grace: float = GRACE) -> None:
        self._grace = grace
        self._zygote = Zygote()

    def capabilities(self, trial: Trial) -> Capabilities:
        """What the trial's hardware profile has."""
        from emulation.profile import Profile

        has = Profile.model_validate_json(json.dumps(trial.profile)).capabilities()
        return Capabilities(
            hosts=has.hosts, gpus=has.gpus, gpu_memory=has.gpu_memory, memory=has.memory, rdma=has.rdma, faults=KINDS
        )

    def start(self, trial: Trial, directory: Path) -> Running:
        """Start the prediction."""
        return RankGroup(trial, directory, self._zygote, mode="predict", grace=self._grace)

    def close(self) -> None:
        """Kill what still runs."""
        self._zygote.close()
