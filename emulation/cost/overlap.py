"""Compute that slows down because its device communicates at the same time.

A collective runs on the same processor and the same memory as the kernels beside it. To first order a kernel takes
``1 + s`` times as long meanwhile, with one s for each kind of link (a copy over NVLink keeps more of the processor busy
than one that an adapter makes). Several communications at a time slow it down as the worst of them does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from emulation.cost import Cost
    from emulation.meetings import Meeting
    from emulation.topology import DirectedLink, Topology


def overlaps(
    meetings: Sequence[Meeting], costs: Sequence[Cost], topology: Topology, links: Sequence[DirectedLink]
) -> dict[int, dict[str, float]]:
    """For each task that slows kernels down: the devices on which it does, and s.

    Weights of costs number `links`. Only devices that compute in this workload are listed; a device whose model has no
    such figure never is.
    """
    kernels = {m.action.devices[0] for m in meetings if m.action.kind == "compute"}
    slowed = {device: figures for device in kernels if (figures := topology.model(device).overlap)}
    found: dict[int, dict[str, float]] = {}
    for task, (meeting, cost) in enumerate(zip(meetings, costs, strict=True)):
        if not slowed or meeting.action.kind == "compute":
            continue
        kinds = {links[link].kind for link, _ in cost.weights}
        devices = {
            device: max((f.value for kind, f in slowed[device].items() if kind in kinds), default=0.0)
            for device in meeting.action.devices
            if device in slowed
        }
        devices = {device: part for device, part in devices.items() if part}
        if devices:
            found[task] = devices
    return found
