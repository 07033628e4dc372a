"""Hosts with real RDMA verbs on a machine that has none: Debian guests in QEMU, rdma_rxe, and a wire between them.

`Image` builds the guest once from Debian packages; `Cluster` boots one or more guests from it, joins them by a wire
that can lose, delay and throttle packets, and hands out a `Host` each to run commands on. Works as root without KVM.
"""

from emulation.softroce.cluster import Cluster, Host
from emulation.softroce.failure import GuestError, GuestLost, Refused, SoftRoceError, ToolsMissing
from emulation.softroce.image import Image
from emulation.softroce.layer import Layer
from emulation.softroce.line import Ended, Task
from emulation.softroce.machine import Share
from emulation.softroce.recipe import Recipe
from emulation.softroce.wire import Wire

__all__ = [
    "Cluster",
    "Ended",
    "GuestError",
    "GuestLost",
    "Host",
    "Image",
    "Layer",
    "Recipe",
    "Refused",
    "Share",
    "SoftRoceError",
    "Task",
    "ToolsMissing",
    "Wire",
]
