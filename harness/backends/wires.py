"""Faults of a network as what the kernels of guests do to packets (netem)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from emulation.faults import FAULTS, Latency, Loss, SlowLink, links_named
from harness.errors import EnvironmentLacks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from emulation.faults import Fault
    from emulation.profile import Profile
    from emulation.softroce import Wire
    from emulation.topology import Topology

KINDS = frozenset({"loss", "extra-latency", "slow-link"})
"""What netem can do to a guest's packets."""


def between(profile: Profile, faults: Sequence[dict[str, Any]]) -> tuple[Wire, ...]:
    """What each guest does to the packets it sends.

    Args:
        profile: whose hosts the guests are.
        faults: JSON-mode dump of a spec's faults, of `KINDS`.

    Raises:
        EnvironmentLacks: netem cannot do what a fault says.
    """
    from emulation.softroce import Wire
    from emulation.topology import Topology

    topology = Topology(profile)
    hosts = profile.host_names()
    found = {host: Wire() for host in hosts}
    for fault in FAULTS.validate_json(json.dumps(list(faults))):
        for host, rate in _senders(fault, topology, hosts).items():
            found[host] = _worse(found[host], fault, rate)
    return tuple(found[host] for host in hosts)


def _senders(fault: Fault, topology: Topology, hosts: Sequence[str]) -> dict[str, float]:
    """Each host that sends into the fault's links, with the capacity of those in bytes per second."""
    if not isinstance(fault, Loss | Latency | SlowLink):
        raise EnvironmentLacks(f"faults: guests cannot be given {fault.kind!r}, only {', '.join(sorted(KINDS))}")
    named = {topology.links[number].name for number in links_named(fault.link, topology)}
    outgoing = {
        host: {
            link.name: link.capacity
            for link in topology.links
            if link.kind == "network" and link.name.startswith(f"{host}/")
        }
        for host in hosts
    }
    meant: dict[str, float] = {}
    for host, links in outgoing.items():
        chosen = named & set(links)
        if chosen and chosen != set(links):
            raise EnvironmentLacks(
                f"faults: a guest treats all its peers alike; {fault.link!r} is some of {host}'s links"
            )
        if chosen:
            meant[host] = sum(links.values())
            named -= chosen
    if named or not meant:
        raise EnvironmentLacks(f"faults: guests are given {fault.kind!r} on their network alone, not on {fault.link!r}")
    return meant


def _worse(wire: Wire, fault: Fault, capacity: float) -> Wire:
    from dataclasses import replace

    match fault:
        case Loss():
            return replace(wire, loss=wire.loss + fault.p - wire.loss * fault.p)
        case Latency() if fault.jitter:
            # netem would let packets overtake one another, which go-back-N takes for losses.
            raise EnvironmentLacks(
                "faults: guests cannot vary a latency without reordering packets; leave out 'jitter'"
            )
        case Latency():
            return replace(wire, delay=wire.delay + fault.latency)
        case SlowLink() if fault.from_ or fault.to is not None:
            raise EnvironmentLacks("faults: guests have a slow link for the whole trial; leave out 'from' and 'to'")
        case SlowLink():
            return replace(wire, rate=(wire.rate or capacity * 8) * fault.factor)
    raise AssertionError(fault.kind)
