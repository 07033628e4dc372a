"""Trials in guests with real RDMA verbs: ranks are spread over the guests of a Soft-RoCE cluster in turn.

The hardware profile says how many guests there are, and their cores and memory. One cluster serves all trials of a
run that fit it; a guest that is lost takes its cluster along, and the next attempt gets a new one. Faults of the
network between guests are carried out by the kernels of the guests.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness import guests
from harness.backends import wires
from harness.backends.base import Capabilities
from harness.backends.group import GRACE
from harness.errors import BackendError, EnvironmentLacks

if TYPE_CHECKING:
    from emulation.profile import Profile
    from emulation.softroce import Cluster
    from harness.backends.base import Running
    from harness.trial import Trial


@dataclass(frozen=True)
class Shape:
    """What a cluster has to be for a trial."""

    hosts: int
    processors: int
    memory: int
    packages: tuple[str, ...]
    """Distributions its engine asks for."""
    code: tuple[Path, ...]
    """Folders of this machine that hold the harness, the engine and what it is imported from."""
    results: Path
    """The folder of this machine that holds the directories of the run's trials."""


class SoftRoceBackend:
    """`base.Backend` for a Soft-RoCE cluster on this machine.

    Raises:
        EnvironmentLacks: QEMU is not installed, or neither an image nor what builds one is there.
    """

    name = "softroce"

    def __init__(self, *, grace: float = GRACE) -> None:
        self._grace = grace
        self._cluster: Cluster | None = None
        self._shape: Shape | None = None
        self._logs = tempfile.TemporaryDirectory(prefix="harness-softroce-", ignore_cleanup_errors=True)
        self._number = 0
        _check_tools()

    def capabilities(self, trial: Trial) -> Capabilities:
        """What the guests of the trial's hardware profile have."""
        profile = _profile(trial)
        has = profile.capabilities()
        return Capabilities(hosts=has.hosts, memory=has.memory, rdma=has.rdma, faults=wires.KINDS)

    def start(self, trial: Trial, directory: Path) -> Running:
        """Start every rank, in a cluster that is booted first where there is none that fits.

        Raises:
            EnvironmentLacks: the trial's faults cannot be carried out, or guests cannot have its packages.
        """
        from harness.backends.softroce_attempt import GuestGroup

        profile = _profile(trial)
        ways = wires.between(profile, trial.faults)
        shape = _shape(trial, profile, directory)
        if self._cluster is None or self._cluster.lost or self._shape != shape:
            self._replace(shape)
        assert self._cluster is not None
        return GuestGroup(trial, directory, self._cluster, ways, grace=self._grace)

    def close(self) -> None:
        """Power the guests off."""
        if self._cluster is not None:
            self._cluster.close()
            self._cluster = None
        self._logs.cleanup()

    def _replace(self, shape: Shape) -> None:
        from emulation.softroce import Cluster, Share, SoftRoceError

        if self._cluster is not None:
            self._cluster.close()
            self._cluster = None
        shares = [*(Share(f, str(f)) for f in shape.code), Share(shape.results, str(shape.results), writable=True)]
        self._number += 1
        try:
            self._cluster = Cluster(
                shape.hosts,
                Path(self._logs.name) / f"cluster{self._number}",
                memory=shape.memory,
                processors=shape.processors,
                # A share may lie inside another: the outer one is mounted first.
                shares=sorted(shares, key=lambda share: len(Path(share.place).parts)),
                layers=guests.layers(shape.packages),
                python_path=[str(f) for f in shape.code],
            )
            self._cluster.power_on()
        except SoftRoceError as error:
            self._cluster = None
            raise BackendError(f"no Soft-RoCE cluster: {error}") from error
        self._shape = shape


def _check_tools() -> None:
    from emulation.softroce import SoftRoceError, tools

    try:
        tools.need({**tools.TO_BOOT, **tools.TO_BUILD})
    except SoftRoceError as error:
        raise EnvironmentLacks(f"the backend 'softroce': {error}") from error


def _profile(trial: Trial) -> Profile:
    from emulation.profile import Profile

    return Profile.model_validate_json(json.dumps(trial.profile))


def _shape(trial: Trial, profile: Profile, directory: Path) -> Shape:
    from emulation.softroce.cluster import MOST_HOSTS

    has = profile.capabilities()
    if has.hosts > MOST_HOSTS:
        raise EnvironmentLacks(f"a Soft-RoCE cluster has {MOST_HOSTS} hosts at most; {profile.name} has {has.hosts}")
    outside = tuple(Path(folder).resolve() for folder in trial.import_path)
    return Shape(
        hosts=has.hosts,
        processors=min(host.cores for host in profile.hosts),
        memory=has.memory,
        packages=trial.packages,
        code=tuple(dict.fromkeys([*guests.code(trial.package), *outside])),
        results=_of_run(trial, directory.resolve()),
    )


def _of_run(trial: Trial, directory: Path) -> Path:
    """The folder in which all trials of a run have theirs: guests that see it can serve every one of them."""
    return next(p.parent for p in directory.parents if p.name == trial.directory_name)
