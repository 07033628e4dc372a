"""The simulated provider: an adapter in virtual time that moves real bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engines.rdma.providers.sim.device import SimulatedDevice

if TYPE_CHECKING:
    from engines.rdma.providers.sim.costs import Costs
    from engines.rdma.providers.sim.fabric import Fabric


def open_device(capacity: int, *, fabric: Fabric, costs: Costs | None = None, **options: Any) -> SimulatedDevice:
    """A device on a fabric, with `capacity` bytes of arena; only devices of one fabric reach each other.

    Args:
        capacity: bytes.
        fabric: the wire and the clock.
        costs: of the host and the adapter.
        options: what else `SimulatedDevice` takes (`mtu`, `quantum`, `name`, `largest_write`, `completions`).
    """
    return SimulatedDevice(capacity, fabric=fabric, costs=costs, **options)
