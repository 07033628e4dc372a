"""A trial: one cell of an experiment on one target, with nothing left to decide."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.records import TargetStamp
    from harness.spec import Limits, Needs, RepeatSpec


@dataclass(frozen=True)
class Trial:
    """What the runner hands to a backend.

    Everything that can change the result is in `key`; see `keys`.
    """

    key: str
    spec: str
    cell: str
    swept: dict[str, Any]
    target: TargetStamp
    resolved: dict[str, Any]
    origins: dict[str, str]
    engine: str
    engine_version: str
    package: str
    """Import path of the engine's package (`engines.rdma`); it has `spec` and `engine` modules."""
    engine_fields: dict[str, Any]
    """JSON-mode dump of the engine's `Spec`, to be validated again in the child."""
    profile: dict[str, Any]
    """JSON-mode dump of the hardware profile."""
    ranks: int
    repeat: RepeatSpec
    limits: Limits
    needs: Needs
    packages: tuple[str, ...] = ()
    """Distributions a real run imports beyond what every rank has; guests are given them."""
    import_path: tuple[str, ...] = field(default=())
    """Directories put before `sys.path` in the child (an engine that is not installed)."""
    faults: list[dict[str, Any]] = field(default_factory=list)
    """JSON-mode dump of what goes wrong, in the order of the spec."""
    key_parts: dict[str, Any] = field(default_factory=dict)
    """What `key` is the digest of (see `keys`), for people who wonder why two trials differ."""

    @property
    def directory_name(self) -> str:
        """Name of the trial's directory in the run directory: its cell and the head of its key."""
        return f"{self.cell}-{self.key[:12]}"
