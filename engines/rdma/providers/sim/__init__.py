"""The simulated provider: an adapter in virtual time that moves real bytes."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from engines.rdma.providers.sim.device import SimulatedDevice
from engines.rdma.providers.sim.fabric import Fabric

if TYPE_CHECKING:
    from engines.rdma.providers.sim.costs import Costs


@cache
def own_fabric() -> Fabric:
    """The fabric of devices that were told of none; one in a process, never lossy."""
    return Fabric()


def open_device(
    capacity: int, *, fabric: Fabric | None = None, costs: Costs | None = None, **options: Any
) -> SimulatedDevice:
    """A device on a fabric, with `capacity` bytes of arena; only devices of one fabric reach each other.

    Args:
        capacity: bytes.
        fabric: the wire and the clock; absent: one that all devices of this process without a fabric share.
        costs: of the host and the adapter.
        options: what else `SimulatedDevice` takes (`mtu`, `quantum`, `name`, `largest_write`, `completions`).
    """
    return SimulatedDevice(capacity, fabric=fabric or own_fabric(), costs=costs, **options)
