"""Rings and trees of ranks: in which order data goes around, and which links that uses.

Ranks are first put in the order of the topology, so that renumbering them changes nothing on equal hardware. Then:

* within a host whose accelerators are joined directly (a cube mesh), as many rings as there are disjoint cycles over
  the links, each carrying its part of the data;
* across hosts, one ring per accelerator of a host, each leaving through another accelerator and so another adapter;
* else one ring in topology order, over switches.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from emulation.cost.usage import added, by_host, hop_usage, in_hosts, scaled

if TYPE_CHECKING:
    from collections.abc import Sequence

    from emulation.cost.usage import Hop, Hosts, Usage
    from emulation.topology import Topology

MAX_DIRECT = 8
"""Ranks up to which disjoint cycles are searched for (a search over orders)."""


def rings(group: Sequence[str], topology: Topology) -> list[list[str]]:
    """Orders of the group; each carries an equal part of the data."""
    hosts = by_host(group, topology)
    size = len(hosts[0])
    if len(hosts) == 1:
        return _disjoint_cycles(hosts[0], topology) or [hosts[0]]
    if any(len(ranks) != size for ranks in hosts):
        return [[rank for ranks in hosts for rank in ranks]]
    return [[rank for ranks in hosts for rank in (*ranks[k:], *ranks[:k])] for k in range(size)]


def ring_usage(hosts: Hosts, topology: Topology) -> Usage:
    """Usage when every byte goes once around, in equal parts over the rings."""
    size = len(hosts[0])
    if len(hosts) == 1 or any(len(ranks) != size for ranks in hosts):
        orders = rings([rank for ranks in hosts for rank in ranks], topology)
        hops = [(a, b) for order in orders for a, b in pairwise([*order, order[0]])]
        return hop_usage(hops, 1 / len(orders), topology)

    def inside(ranks: list[str]) -> Usage:
        # Of `size` rings, each leaves the host between two other neighbours and uses the hops between all others.
        around = [(ranks[k - 1], ranks[k]) for k in range(size)] if size > 1 else []
        return hop_usage(around, (size - 1) / size, topology)

    following = zip(hosts, [*hosts[1:], hosts[0]], strict=True)
    across = ((here[k - 1], there[k]) for here, there in following for k in range(size))
    return added(in_hosts(hosts, inside, topology), hop_usage(across, 1 / size, topology))


def tree_usage(hosts: Hosts, share: float, topology: Topology, *, double: bool = True) -> Usage:
    """Usage of a binary tree in every host and one over the hosts' first ranks, up and down.

    Args:
        hosts: the group.
        share: bytes per byte of progress that cross each hop of a tree, in each direction.
        topology: of the cluster.
        double: two trees of which the second is the mirror image of the first, so that inner ranks of one are leaves
            of the other (Sanders, Speck, Traeff: Two-tree algorithms, Parallel Computing 2009).
    """
    trees = []
    for mirrored in (False, True) if double else (False,):
        turned = [ranks[::-1] if mirrored else ranks for ranks in (hosts[::-1] if mirrored else hosts)]
        trees.append(in_hosts(turned, lambda ranks: hop_usage(_heap(ranks), share, topology), topology))
        trees.append(hop_usage(_heap([ranks[0] for ranks in turned]), share, topology))
    return added(*trees)


def _heap(ranks: Sequence[str]) -> list[Hop]:
    up = [(rank, ranks[(place - 1) // 2]) for place, rank in enumerate(ranks) if place]
    return up + [(parent, child) for child, parent in up]


def two_level_usage(hosts: Hosts, topology: Topology) -> tuple[Usage, Usage]:
    """Usage when every byte goes once around in every host, and when each rail takes its share once around."""
    size = len(hosts[0])
    local = in_hosts(hosts, lambda ranks: ring_usage([ranks], topology), topology)
    rails = (ring_usage([[rank] for rank in rail], topology) for rail in zip(*hosts, strict=True))
    return local, scaled(added(*rails), 1 / size)


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
