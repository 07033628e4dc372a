"""Where trials run: `emulated`, `local`, `ray`, `softroce`.

A new backend is a module here and a line in `open_backend`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.errors import BackendError

if TYPE_CHECKING:
    from harness.backends.base import Backend, Capabilities


def open_backend(name: str, *, grace: float = 10.0, ray_address: str = "", most_ranks: int = 1) -> Backend:
    """The backend of a name; the caller closes it.

    Args:
        name: `emulated`, `local`, `ray` or `softroce`.
        grace: seconds between TERM and KILL when a trial is stopped.
        ray_address: of a running Ray cluster; empty for RAY_ADDRESS, else a Ray of our own on this machine.
        most_ranks: the most ranks a trial of this run has; a Ray of our own gets room for them.

    Raises:
        BackendError: no such backend, or it cannot be reached.
        EnvironmentLacks: what it needs is not installed.
    """
    if name == "emulated":
        from harness.backends.emulated import EmulatedBackend

        return EmulatedBackend(grace=grace)
    if name == "local":
        from harness.backends.local import LocalBackend

        return LocalBackend(grace=grace)
    if name == "ray":
        from harness.backends.ray import RayBackend

        return RayBackend(ray_address, grace=grace, most_ranks=most_ranks)
    if name == "softroce":
        from harness.backends.softroce import SoftRoceBackend

        return SoftRoceBackend(grace=grace)
    raise BackendError(f"no backend {name!r}; there are emulated, local, ray and softroce")


def capabilities(name: str, *, ray_address: str = "") -> Capabilities:
    """What a real backend has.

    Raises:
        BackendError: no such real backend, or it cannot be reached.
        EnvironmentLacks: Ray is not installed.
    """
    from harness.backends import machine

    if name == "local":
        return machine.capabilities()
    if name == "ray":
        from harness.backends import ray

        return ray.cluster_capabilities(ray_address)
    raise BackendError(f"no real backend {name!r}; there are local and ray")
