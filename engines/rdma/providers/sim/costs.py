"""What things cost on the simulated machine, in seconds and bytes per second.

Inside the simulator time is an integer number of picoseconds, so that sums are exact and a burst worked out in closed
form ends at the same picosecond as its packets one by one; `Costs` is where seconds become picoseconds.

A profile (`emulation.profile`) has most of these figures: one-sided software costs, copies, links. It has none for an
adapter's work per packet, which is therefore nothing there, and its links' efficiencies have headers in them already.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from emulation.units import PICOSECONDS_PER_SECOND, picoseconds
from harness.api import EnvironmentLacks

if TYPE_CHECKING:
    from collections.abc import Callable

    from emulation.fabric import DirectedLink
    from emulation.profile import OneSided, Profile

ROCE_HEADERS = 86
"""Bytes on the wire around the payload of a RoCEv2 packet: preamble and gap 20, Ethernet 14 and its check 4, IPv4 20,
UDP 8, base transport header 12, invariant check 4, and 4 on average for the extended headers of a message's ends."""


def ten_gigabytes(nbytes: float) -> float:  # noqa: ARG001 - the rate of a copy may depend on its size
    """Bytes per second of a copy, whatever its size."""
    return 10e9


@dataclass(frozen=True)
class Costs:
    """One host and its adapter. The defaults are an order of magnitude for 100 Gbit/s, not of any product."""

    post: float = 1e-6
    """Seconds of processor to build and post one work request."""
    completion: float = 1e-6
    """Seconds from memory being written until a poller has seen it."""
    bus_latency: float = 400e-9
    """Seconds from host memory to the adapter, or back."""
    bus_rate: float = 12e9
    """Bytes per second of the adapter's reads (and, beside them, writes) of host memory."""
    wire_rate: float = 12.5e9
    """Bytes per second of the adapter's port, each way."""
    header: int = ROCE_HEADERS
    """Bytes that a packet takes on the wire beside its payload."""
    per_packet: float = 5e-9
    """Seconds of the adapter for each packet, sent or received."""
    contexts: int = 1024
    """Queue pairs whose state the adapter holds; the state of others is in host memory."""
    context_miss: float = 800e-9
    """Seconds in which the adapter fetches the state of one more."""
    receiver_timer: float = 640e-6
    """Seconds that a sender is told to wait when no buffer is posted for its message (RNR timer)."""
    memcpy: Callable[[float], float] = ten_gigabytes
    """Bytes per second of one core copying so many bytes."""
    serialise: float = 4e9
    """Bytes per second of one core packing or unpacking a message."""
    registration: float = 30e-6
    """Seconds to register a region, and"""
    registration_per_page: float = 200e-9
    """for each of its pages, of"""
    page: int = 4096
    """bytes."""

    @cached_property
    def post_time(self) -> int:
        """Picoseconds; see `post`."""
        return picoseconds(self.post)

    @cached_property
    def packet_time(self) -> int:
        """Picoseconds; see `per_packet`."""
        return picoseconds(self.per_packet)

    @cached_property
    def bus_time(self) -> int:
        """Picoseconds; see `bus_latency`."""
        return picoseconds(self.bus_latency)

    @cached_property
    def visible_time(self) -> int:
        """Picoseconds from the adapter being done with bytes until a poller has seen them."""
        return picoseconds(self.bus_latency) + picoseconds(self.completion)

    @cached_property
    def miss_time(self) -> int:
        """Picoseconds; see `context_miss`."""
        return picoseconds(self.context_miss)

    def dma(self, nbytes: int) -> int:
        """Picoseconds of the bus for one packet's payload."""
        return round(nbytes * PICOSECONDS_PER_SECOND / self.bus_rate)

    def wire(self, nbytes: int) -> int:
        """Picoseconds of the port for a packet with this payload."""
        return round((nbytes + self.header) * PICOSECONDS_PER_SECOND / self.wire_rate)

    def copying(self, nbytes: int) -> int:
        """Picoseconds of one core for a copy."""
        return round(nbytes * PICOSECONDS_PER_SECOND / self.memcpy(nbytes)) if nbytes else 0

    def serialising(self, nbytes: int) -> int:
        """Picoseconds of one core for packing or unpacking a message."""
        return round(nbytes * PICOSECONDS_PER_SECOND / self.serialise)

    def registering(self, nbytes: int) -> int:
        """Picoseconds of one core to register so many bytes."""
        pages = max(1, math.ceil(nbytes / self.page))
        return picoseconds(self.registration) + pages * picoseconds(self.registration_per_page)


@dataclass(frozen=True)
class Way:
    """What a profile says about two hosts: what either end pays, and the seconds over the wire between them."""

    source: Costs
    target: Costs
    propagation: float


def way_of(profile: Profile, source: str, target: str) -> Way:
    """The figures of a pair of hosts; the links of the route from one processor to the other.

    The slowest network link on the way is taken for the port, and the slowest link inside a host for its bus. The
    state of a queue pair is fetched from host memory: there and back over the bus.

    Args:
        profile: the cluster.
        source: name of a processor, `host0/cpu`.
        target: the same, of another host.

    Raises:
        EnvironmentLacks: the profile has no one-sided writes, or no network joins the two.
    """
    from emulation.topology import Topology

    topology = Topology(profile)
    links = [topology.links[number] for number in topology.route(source, target).links]
    network = [place for place, link in enumerate(links) if link.kind == "network"]
    if not network:
        raise EnvironmentLacks(f"profile {profile.name!r}: no network leads from {source!r} to {target!r}")
    first, last = network[0], network[-1] + 1
    wire = links[first:last]
    return Way(
        source=_costs(profile, source, links[:first], wire),
        target=_costs(profile, target, links[last:], wire),
        propagation=sum(link.latency for link in wire) / PICOSECONDS_PER_SECOND,
    )


def _costs(profile: Profile, device: str, bus: list[DirectedLink], wire: list[DirectedLink]) -> Costs:
    software = profile.host(device).software
    one_sided: OneSided | None = software.one_sided
    if one_sided is None:
        raise EnvironmentLacks(f"profile {profile.name!r}: {device!r} has no one-sided writes")
    memory = profile.models[profile.host(device).cpu].memory_bandwidth.peak.value
    bus_latency = sum(link.latency for link in bus) / PICOSECONDS_PER_SECOND
    return Costs(
        post=one_sided.post.value,
        completion=one_sided.completion.value,
        bus_latency=bus_latency,
        bus_rate=min([link.capacity for link in bus], default=memory),
        wire_rate=min(link.capacity for link in wire),
        header=0,
        per_packet=0.0,
        context_miss=2 * bus_latency,
        memcpy=software.memcpy.rate,
        serialise=software.rpc.serialise.value,
        registration=one_sided.registration.value,
        registration_per_page=one_sided.registration_per_page.value,
        page=round(software.page.value),
    )
