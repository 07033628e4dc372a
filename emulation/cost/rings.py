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
    orders = []
    for k in range(size):
        # Every other host is passed backwards: data leaves for the next host's accelerator of the same place, which
        # on a fabric with rails is one hop away.
        turned = ((*ranks[k:], *ranks[:k])[:: -1 if place % 2 else 1] for place, ranks in enumerate(hosts))
        orders.append([rank for ranks in turned for rank in ranks])
    return orders


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

    def against(ranks: list[str]) -> Usage:
        return inside(ranks[::-1])

    across = []
    for place, (here, there) in enumerate(zip(hosts, [*hosts[1:], hosts[0]], strict=True)):
        following = (place + 1) % len(hosts)
        across += [(here[k - 1 + place % 2], there[k - following % 2]) for k in range(size)]
    usages = (in_hosts(hosts[::2], inside, topology), in_hosts(hosts[1::2], against, topology))
    return added(*usages, hop_usage(across, 1 / size, topology))


def tree_usage(op: str, hosts: Hosts, topology: Topology, *, double: bool = True) -> Usage:
    """Usage of a binary tree in every host and one over the hosts' first ranks.

    Args:
        op: `broadcast` sends down the tree, `reduce` up, `all-reduce` up and then down.
        hosts: the group; the first rank is the root of a broadcast or reduce.
        topology: of the cluster.
        double: two trees with half of the data each, of which the second is the mirror image of the first, so that
            inner ranks of one are leaves of the other; the root of a broadcast or reduce is in neither and serves both
            (Sanders, Speck, Traeff: Two-tree algorithms, Parallel Computing 2009).
    """
    ways = {"broadcast": (False,), "reduce": (True,), "all-reduce": (True, False)}[op]
    root = hosts[0][0] if double and op != "all-reduce" else ""
    share = 0.5 if double else 1.0

    def used(tree: list[Hop]) -> Usage:
        return hop_usage((hop[::-1] if up else hop for hop in tree for up in ways), share, topology)

    usages = []
    for mirrored in (False, True) if double else (False,):
        turned = [ranks[::-1] if mirrored else ranks for ranks in (hosts[::-1] if mirrored else hosts)]
        if root:
            turned = [ranks for ranks in turned if root not in ranks]
            usages.append(used(_served(root, [rank for rank in hosts[0][:: -1 if mirrored else 1] if rank != root])))
        usages.append(in_hosts(turned, lambda ranks: used(_heap(ranks)), topology))
        first = [ranks[0] for ranks in turned]
        usages.append(used(_served(root, first) if root else _heap(first)))
    return added(*usages)


def _heap(ranks: Sequence[str]) -> list[Hop]:
    """Hops of a binary tree from parents to children."""
    return [(ranks[(place - 1) // 2], rank) for place, rank in enumerate(ranks) if place]


def _served(root: str, ranks: Sequence[str]) -> list[Hop]:
    """A tree of all others, and its root's link to the one that is in no tree."""
    return [(root, rank) for rank in ranks[:1]] + _heap(ranks)


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
