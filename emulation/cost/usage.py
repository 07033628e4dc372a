"""Which links a pattern of hops uses, and how much of the data crosses each.

Hosts of one group that hold the same members of a collective do the same inside: what one of them uses is worked out
once and moved to the others, so that 1,024 ranks cost as many routes as there are hops between hosts.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from emulation.fabric import Pattern, add

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from emulation.topology import Topology

Usage = dict[int, float]
"""Link -> bytes that cross it per byte of progress."""
Hop = tuple[str, str]
Hosts = list[list[str]]
"""A group in topology order, host by host."""


def by_host(group: Sequence[str], topology: Topology) -> Hosts:
    """The group in topology order, host by host."""
    hosts: dict[str, list[str]] = {}
    for device in sorted(group, key=topology.order.__getitem__):
        hosts.setdefault(device.partition("/")[0], []).append(device)
    return list(hosts.values())


def hop_usage(hops: Iterable[Hop], share: float, topology: Topology) -> Usage:
    """Usage when `share` of the bytes crosses each of these hops."""
    crossings: dict[int, int] = {}
    for src, dst in hops:
        numbers = topology.crossed(src, dst)
        for number in numbers or (topology.memory[src.partition("/")[0]],):
            # A hop between two processes of one host is a copy: read once, written once.
            crossings[number] = crossings.get(number, 0) + (1 if numbers else 2)
    return {number: share * count for number, count in sorted(crossings.items())}


def in_hosts(hosts: Hosts, local: Callable[[list[str]], Usage], topology: Topology) -> Usage:
    """Usage inside all hosts; `local` gives that of one, and is asked once for all that are equal."""
    total: Usage = {}
    for alike in equal_hosts(hosts, topology):
        first = alike[0][0]
        usage = local(alike[0])
        for ranks in alike:
            for number, amount in usage.items():
                moved = topology.moved(number, first, ranks[0])
                total[moved] = total.get(moved, 0.0) + amount
    return total


def equal_hosts(hosts: Hosts, topology: Topology) -> list[Hosts]:
    """Hosts of one group with the same members taking part, together; with pinned routes, no two are equal."""
    if topology.profile.routes:
        return [[ranks] for ranks in hosts]
    alike: dict[tuple[object, ...], Hosts] = {}
    for ranks in hosts:
        members = tuple(rank.partition("/")[2] for rank in ranks)
        alike.setdefault((topology.group_of(ranks[0]), members), []).append(ranks)
    return list(alike.values())


def scaled(usage: Mapping[int, float], factor: float) -> Usage:
    """Every amount times a factor."""
    return {number: amount * factor for number, amount in usage.items()}


def added(*usages: Mapping[int, float]) -> Usage:
    """Sum over several patterns, by link number."""
    total: Usage = {}
    for usage in usages:
        for number, amount in usage.items():
            total[number] = total.get(number, 0.0) + amount
    return dict(sorted(total.items()))


def pairwise_usage(hosts: Hosts, topology: Topology) -> Usage:
    """Usage when every rank sends one byte to every other, its flows spread evenly over equal ways of the fabric.

    Between hosts, ranks of the same place use the same ports everywhere (those that are nearest from the first host to
    the last), so the traffic of a port is a matter of counting, and that of the fabric of counting ports by switch.
    """
    if topology.profile.routes:
        group = [rank for ranks in hosts for rank in ranks]
        return hop_usage(((a, b) for a in group for b in group if a != b), 1.0, topology)

    def within(ranks: list[str]) -> Usage:
        return hop_usage(((a, b) for a in ranks for b in ranks if a != b), 1.0, topology)

    usage = in_hosts(hosts, within, topology)
    patterns: list[Pattern] = []
    classes = equal_hosts(hosts, topology)
    for senders in classes:
        for receivers in classes:
            away = len(receivers) - (senders is receivers)
            if away:
                patterns += _between(senders, receivers, away, usage, topology)
    return added(usage, topology.spread(patterns) if patterns else {})


def _between(senders: Hosts, receivers: Hosts, away: int, usage: Usage, topology: Topology) -> Iterator[Pattern]:
    """Patterns over the fabric from hosts of one kind to (`away` others) of another; `usage` gets what is inside."""
    back = len(senders) - (senders is receivers)
    out: Counter[int] = Counter()
    into: Counter[int] = Counter()
    ports: Counter[Hop] = Counter()
    for src in senders[0]:
        for dst in receivers[-1]:
            exit = topology.exit(src, dst)
            out.update(exit.out)
            into.update(exit.into)
            ports[exit.leaving, exit.arriving] += 1
    for hosts, crossings, times in ((senders, out, away), (receivers, into, back)):
        for ranks in hosts:
            start = topology.start(ranks[0])
            for local, count in crossings.items():
                add(usage, start + local, float(times * count))
    heads, others = ([ranks[0].partition("/")[0] for ranks in hosts] for hosts in (senders, receivers))
    for (leaving, arriving), flows in sorted(ports.items()):
        yield Pattern([f"{h}/{leaving}" for h in heads], [f"{h}/{arriving}" for h in others], flows)
