"""The hosts of a profile as simulated devices on one fabric.

A profile (`emulation.profile`) has most of the figures: one-sided software costs, copies, links. It has none for an
adapter's work per packet, which is therefore nothing here, and its links' efficiencies have headers in them already.
Between two hosts the fabric is what the links of the route add up to: its latency is their sum, and the slowest of
them takes the place of the adapters' ports. That switches further in are shared by others, it does not know.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from emulation.topology import Topology
from emulation.units import PICOSECONDS_PER_SECOND
from engines.rdma.providers.sim.costs import Costs
from engines.rdma.providers.sim.device import SimulatedDevice
from engines.rdma.providers.sim.fabric import Fabric, Wire
from harness.api import EnvironmentLacks

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from emulation.fabric import DirectedLink
    from emulation.profile import Profile


class Route(NamedTuple):
    """The links from one host's processor to another's, as an adapter sees them."""

    out: list[DirectedLink]
    """Inside the first host."""
    wire: list[DirectedLink]
    """Between the two."""
    into: list[DirectedLink]
    """Inside the second."""

    @property
    def propagation(self) -> float:
        """Seconds over the wire."""
        return sum(link.latency for link in self.wire) / PICOSECONDS_PER_SECOND


class Cluster:
    """The first hosts of a profile, one rank on each."""

    def __init__(self, profile: Profile, ranks: int) -> None:
        """Find the ways between them.

        Raises:
            EnvironmentLacks: the profile has fewer hosts, or they have no adapters with one-sided writes.
        """
        hosts = profile.host_names()
        if ranks < 2:
            raise ValueError(f"{ranks} ranks have nobody to send to")
        if len(hosts) < ranks:
            found = f"{len(hosts)} host{'s' * (len(hosts) > 1)}"
            raise EnvironmentLacks(
                f"profile {profile.name!r} has {found}, and {ranks} simulated adapters need one each: leave "
                "'provider: sim' out, or name a larger profile with RDMA adapters (rdma-100g-pair)"
            )
        self.profile = profile
        self._devices = [f"{host}/cpu" for host in hosts[:ranks]]
        self._topology = Topology(profile)
        routes = [self._route(left, right) for left, right in pairwise(self._devices)]
        buses = [route.out for route in routes] + [routes[-1].into]
        wires = [route.wire for route in routes] + [routes[-1].wire]
        self.costs = [self._costs(*of) for of in zip(self._devices, buses, wires, strict=True)]
        """Of each rank."""

    def _route(self, source: str, target: str) -> Route:
        links = [self._topology.links[number] for number in self._topology.route(source, target).links]
        network = [place for place, link in enumerate(links) if link.kind == "network"]
        if not network:
            raise EnvironmentLacks(f"profile {self.profile.name!r}: no network leads from {source!r} to {target!r}")
        first, last = network[0], network[-1] + 1
        return Route(links[:first], links[first:last], links[last:])

    def _costs(self, device: str, bus: list[DirectedLink], wire: list[DirectedLink]) -> Costs:
        host = self.profile.host(device)
        software, one_sided = host.software, host.software.one_sided
        if one_sided is None:
            raise EnvironmentLacks(f"profile {self.profile.name!r}: {device!r} has no one-sided writes")
        memory = self.profile.models[host.cpu].memory_bandwidth.peak.value
        bus_latency = sum(link.latency for link in bus) / PICOSECONDS_PER_SECOND
        return Costs(
            post=one_sided.post.value,
            completion=one_sided.completion.value,
            bus_latency=bus_latency,
            bus_rate=min([link.capacity for link in bus], default=memory),
            wire_rate=min(link.capacity for link in wire),
            header=0,
            per_packet=0.0,
            # The state of a queue pair is fetched from host memory: there and back over the bus.
            context_miss=2 * bus_latency,
            memcpy=software.memcpy.rate,
            serialise=software.rpc.serialise.value,
            registration=one_sided.registration.value,
            registration_per_page=one_sided.registration_per_page.value,
            page=round(software.page.value),
        )

    @property
    def propagation(self) -> float:
        """Seconds from the first host to the second."""
        return self._route(*self._devices[:2]).propagation

    def open(self, capacities: Sequence[int], fabric: Fabric | None = None, **options: Any) -> list[SimulatedDevice]:
        """A device on each host, `rank0`, `rank1` and so on, as far apart as their hosts.

        Args:
            capacities: bytes of arena of each.
            fabric: new; absent: one that loses nothing.
            options: what else `SimulatedDevice` takes.
        """
        fabric = fabric or Fabric(Wire(self.propagation))
        devices = [
            SimulatedDevice(capacity, fabric=fabric, costs=costs, name=f"rank{rank}", **options)
            for rank, (capacity, costs) in enumerate(zip(capacities, self.costs, strict=True))
        ]
        for left, source in enumerate(self._devices):
            for right, target in enumerate(self._devices[:left]):
                fabric.space(f"rank{left}", f"rank{right}", self._route(source, target).propagation)
        return devices
