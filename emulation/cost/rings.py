"""Which links a ring or a tree of ranks uses, and how much of the data crosses each.

Ranks are first put in the order of the topology, so that renumbering them changes nothing on equal hardware. Then:

* within a host whose accelerators are joined directly (a cube mesh), as many rings as there are disjoint cycles over
  the links, each carrying its part of the data;
* across hosts, one ring per accelerator of a host, each leaving through another accelerator and so another adapter;
* else one ring in topology order, over switches.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from emulation.topology import Topology

Usage = dict[int, float]
"""Link -> bytes that cross it per byte of progress."""
MAX_DIRECT = 8
"""Ranks up to which disjoint cycles are searched for (a search over orders)."""


def by_host(group: Sequence[str], topology: Topology) -> list[list[str]]:
    """The group in topology order, host by host."""
    hosts: dict[str, list[str]] = {}
    for device in sorted(group, key=lambda name: topology.order[name]):
        hosts.setdefault(device.split("/", 1)[0], []).append(device)
    return list(hosts.values())


def rings(group: Sequence[str], topology: Topology) -> list[list[str]]:
    """Orders of the group; each carries an equal part of the data."""
    hosts = by_host(group, topology)
    size = len(hosts[0])
    if len(hosts) == 1:
        return _disjoint_cycles(hosts[0], topology) or [hosts[0]]
    if any(len(ranks) != size for ranks in hosts):
        return [[rank for ranks in hosts for rank in ranks]]
    return [[rank for ranks in hosts for rank in (*ranks[k:], *ranks[:k])] for k in range(size)]


def ring_usage(orders: Sequence[Sequence[str]], topology: Topology) -> Usage:
    """Usage when every byte goes once around, in equal parts over the rings."""
    hops = [(a, b) for order in orders for a, b in pairwise([*order, order[0]])]
    return hop_usage(hops, 1 / len(orders), topology)


def hop_usage(hops: Iterable[tuple[str, str]], share: float, topology: Topology) -> Usage:
    """Usage when `share` of the bytes crosses each of these hops."""
    crossings: dict[int, int] = {}
    for src, dst in hops:
        numbers = topology.route(src, dst).links
        for number in numbers or (topology.memory[src.split("/", 1)[0]],):
            # A hop between two processes of one host is a copy: read once, written once.
            crossings[number] = crossings.get(number, 0) + (1 if numbers else 2)
    return {number: share * count for number, count in sorted(crossings.items())}


def tree_hops(group: Sequence[str], topology: Topology) -> list[tuple[str, str]]:
    """Both trees of a double binary tree, up and down; each carries half of the data.

    The second is the mirror image of the first, so that inner ranks of one are leaves of the other (Sanders, Speck,
    Traeff: Two-tree algorithms, Parallel Computing 2009).
    """
    hops: list[tuple[str, str]] = []
    hosts = by_host(group, topology)
    for mirrored in (False, True):
        turned = [ranks[::-1] if mirrored else ranks for ranks in (hosts[::-1] if mirrored else hosts)]
        for ranks in turned:
            hops += _heap(ranks)
        hops += _heap([ranks[0] for ranks in turned])
    return hops


def _heap(ranks: Sequence[str]) -> list[tuple[str, str]]:
    up = [(rank, ranks[(place - 1) // 2]) for place, rank in enumerate(ranks) if place]
    return up + [(parent, child) for child, parent in up]


def _disjoint_cycles(ranks: Sequence[str], topology: Topology) -> list[list[str]]:
    """As many cycles through all ranks as direct links allow, each in both directions; none if they do not join so."""
    if not 2 < len(ranks) <= MAX_DIRECT:
        return [list(ranks)] if len(ranks) == 2 else []
    lanes = {(a, b): topology.lanes(a, b) for a in ranks for b in ranks if a != b}
    cycles = _cycles(ranks, lanes)
    best = _most(cycles, lanes, min(sum(lanes[ranks[0], b] for b in ranks[1:]) // 2, len(ranks)))
    return [order for cycle in best for order in (cycle, cycle[::-1])]


def _cycles(ranks: Sequence[str], lanes: dict[tuple[str, str], int]) -> list[list[str]]:
    """Every Hamiltonian cycle over direct links, once, starting at the first rank."""
    found: list[list[str]] = []

    def grow(path: list[str]) -> None:
        if len(path) == len(ranks):
            if lanes[path[-1], path[0]] and path[1] < path[-1]:
                found.append(path)
            return
        for rank in ranks:
            if rank not in path and lanes[path[-1], rank]:
                grow([*path, rank])

    grow([ranks[0]])
    return found


def _most(cycles: Sequence[list[str]], lanes: dict[tuple[str, str], int], limit: int) -> list[list[str]]:
    """The largest choice of cycles (at most `limit`) that uses no lane twice."""
    best: list[list[str]] = []

    def choose(first: int, left: dict[tuple[str, str], int], chosen: list[list[str]]) -> bool:
        nonlocal best
        if len(chosen) > len(best):
            best = list(chosen)
        if len(best) == limit:
            return True
        for index in range(first, len(cycles)):
            hops = list(pairwise([*cycles[index], cycles[index][0]]))
            if all(left[hop] for hop in hops):
                taken = dict(left)
                for a, b in hops:
                    taken[a, b] -= 1
                    taken[b, a] -= 1
                if choose(index, taken, [*chosen, cycles[index]]):
                    return True
        return False

    choose(0, lanes, [])
    return best
