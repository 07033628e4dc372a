"""Trials on this machine: one process a rank, joined over loopback."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.backends import machine
from harness.backends.group import GRACE, RankGroup
from harness.backends.process import Zygote

if TYPE_CHECKING:
    from pathlib import Path

    from harness.backends.base import Capabilities, Running
    from harness.trial import Trial


class LocalBackend:
    """`base.Backend` for this machine."""

    name = "local"

    def __init__(self, *, grace: float = GRACE) -> None:
        self._grace = grace
        self._zygote = Zygote()
        self._has: Capabilities | None = None

    def capabilities(self, trial: Trial) -> Capabilities:  # noqa: ARG002  # one machine, whatever the trial
        """This machine's, looked up once."""
        if self._has is None:
            self._has = machine.capabilities()
        return self._has

    def start(self, trial: Trial, directory: Path) -> Running:
        """Start every rank."""
        return RankGroup(trial, directory, self._zygote, mode="run", grace=self._grace)

    def close(self) -> None:
        """Kill what still runs."""
        self._zygote.close()
