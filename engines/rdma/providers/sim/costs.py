"""What things cost on the simulated machine, in seconds and bytes per second.

Inside the simulator time is an integer number of picoseconds, so that sums are exact and a burst worked out in closed
form ends at the same picosecond as its packets one by one; `Costs` is where seconds become picoseconds.

`cluster` takes them from a profile.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from emulation.units import PICOSECONDS_PER_SECOND, picoseconds

if TYPE_CHECKING:
    from collections.abc import Callable

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
