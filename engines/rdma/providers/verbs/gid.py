"""Which address of a port to connect with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from emulation import rdma_devices
from engines.rdma.device import ProviderUnavailable, Unavailable

if TYPE_CHECKING:
    from pathlib import Path

    from emulation.rdma_devices import Gid


def find(device: str, port: int, index: int | None, root: Path = rdma_devices.SYSFS) -> Gid:
    """The GID of `index`, or the one to be preferred where that is None.

    Raises:
        ProviderUnavailable: the port has no such GID, or none that other hosts can be reached with.
    """
    found = next((known for known in rdma_devices.devices(root) if known.name == device), None)
    layer = next((known.link_layer for known in found.ports if known.number == port), None) if found else None
    if layer is None:
        raise ProviderUnavailable(Unavailable.DEVICE, f"{device} has no port {port}")
    there = rdma_devices.gids(device, port, root)
    if index is None:
        gid = rdma_devices.choose_gid(layer, there)
    else:
        gid = next((known for known in there if known.index == index), None)
    if gid is None:
        wanted = "a RoCE v2 address" if index is None else f"index {index}"
        has = ", ".join(f"{known.index}: {known.address} ({known.kind})" for known in there) or "none"
        raise ProviderUnavailable(
            Unavailable.GID,
            f"port {port} of {device} has no GID with {wanted}; it has {has}; "
            "give its network interface an IP address, or name another port",
        )
    return gid
