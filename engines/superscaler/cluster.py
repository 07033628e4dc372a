"""What a cluster's devices are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from emulation import layout

if TYPE_CHECKING:
    from emulation.processors import DeviceModel
    from emulation.profile import Profile


def model_of(profile: Profile, device: str) -> DeviceModel:
    """The model of a device, by its name on the cluster."""
    host = layout.host_of(profile, device)
    group = device.partition("/")[2].rstrip("0123456789")
    models = {found.name: found.model for found in host.devices}
    return profile.models[models.get(group, host.cpu)]
