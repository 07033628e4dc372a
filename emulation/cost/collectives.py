"""Collectives in closed form: a latency per step, then one fluid over all links the algorithm uses.

With n ranks, a buffer of S bytes, a step latency alpha and per-rank bandwidth beta (Thakur, Rabenseifner, Gropp:
Optimization of collective communication operations in MPICH, IJHPCA 2005; NCCL's tuner for base and step constants):

=====================  ==================================  ===================================
operation              ring                                tree, halving-doubling
=====================  ==================================  ===================================
all-reduce             2(n-1) alpha + 2(n-1)/n S/beta      2 ceil(log2 n) alpha + 2 S/beta (tree)
reduce-scatter,        (n-1) alpha + (n-1)/n S/beta        log2 n alpha + (n-1)/n S/beta
all-gather                                                 (halving-doubling)
broadcast, reduce      (n-1) alpha + S/beta (pipelined)    ceil(log2 n) alpha + S/beta (tree)
all-to-all             (n-1) alpha + (n-1)/n S/beta        (pairs, listed under ring)
=====================  ==================================  ===================================

A ring over m hosts pays the network's alpha for the share of steps that cross hosts: of 2(n-1) steps, 2(m-1).
Two-level all-reduce of g ranks on each of m hosts is reduce-scatter (g, S), all-reduce (m, S/g) on every rail,
all-gather (g, S), one after another. One rank costs nothing; no bytes cost the latency alone.

Where a profile has measured tables that fit the group (`tables`), they say the time. Else, of the options it lists,
the one that would be fastest on idle links is taken. ``busbw`` is the rate that makes operations and group sizes
comparable: bytes / time x factor; it never exceeds the slowest link.
"""

from __future__ import annotations

import math
from itertools import combinations, pairwise
from typing import TYPE_CHECKING

from emulation.cost import Cost, rings, tables
from emulation.figures import weakest
from emulation.graph import WorkloadError
from emulation.topology import KINDS
from emulation.units import picoseconds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from emulation.cost.rings import Usage
    from emulation.graph import Node
    from emulation.profile import CollectiveOption, LinkKind
    from emulation.topology import Topology


def bus_factor(op: str, ranks: int) -> float:
    """What S / time is multiplied by to give busbw (as nccl-tests defines it)."""
    if ranks == 1:
        return 0.0
    if op == "all-reduce":
        return 2 * (ranks - 1) / ranks
    return 1.0 if op in {"broadcast", "reduce"} else (ranks - 1) / ranks


def collective(node: Node, topology: Topology) -> Cost:
    """Cost of a collective over `node.devices`, by the fastest option the profile has for it.

    Raises:
        WorkloadError: no option fits the group.
    """
    group = node.devices
    if len(group) == 1:
        return Cost("collective", "measured", method="alone")
    kinds = _step_kinds(group, topology)
    measured = _from_tables(node, topology, kinds[1])
    if measured is not None:
        return measured
    offers = [
        offer for option in topology.profile.collectives if (offer := _offer(option, node, topology, kinds)) is not None
    ]
    if not offers:
        raise WorkloadError(
            f"#{node.id} {node.op} {node.name!r}: profile {topology.profile.name!r} lists no collective that can do it "
            f"over {' and '.join(dict.fromkeys(kinds))} links with {len(group)} ranks"
        )
    return min(offers, key=idle_time)


def idle_time(cost: Cost) -> float:
    """Seconds it takes when nothing else uses its links."""
    return cost.fixed / 1e12 + (cost.work / cost.cap if cost.work else 0.0)


def _step_kinds(group: Sequence[str], topology: Topology) -> tuple[LinkKind, LinkKind]:
    """(farthest link kind within hosts, farthest across hosts; equal on one host)."""
    hosts = rings.by_host(group, topology)
    order = rings.rings(group, topology)[0] if len(hosts) == 1 else []
    hops = list(pairwise(order)) or [(r[i], r[i + 1]) for r in hosts for i in range(len(r) - 1)]
    near = [topology.route(a, b).kind for a, b in hops]
    far = [topology.route(a[0], b[0]).kind for a, b in pairwise(hosts)]
    inner = max(near or far, key=KINDS.index)
    return inner, max(far or [inner], key=KINDS.index)


def _from_tables(node: Node, topology: Topology, farthest: LinkKind) -> Cost | None:
    """The measured time as a latency and a fluid over the links of a ring, so that it shares them; None without."""
    profile, hosts = topology.profile, rings.by_host(node.devices, topology)
    if not profile.collective_tables or any(len(ranks) != len(hosts[0]) for ranks in hosts):
        return None
    shape, step = (len(node.devices), len(hosts)), tables.ring_step(profile.collectives, farthest)
    reading = tables.read(profile.collective_tables, node.op, shape, farthest, node.nbytes, step=step)
    form = _ring(node.op, hosts, topology)
    if reading is None or form is None:
        return None
    if reading.method != "table" and any(topology.lanes(*pair) for pair in combinations(node.devices, 2)):
        # Directly linked: how many links a group can use depends on its size, and more ranks may take less time.
        return None
    moving, usage = reading.seconds - reading.latency, form[2]
    work = float(node.nbytes) if moving > 0 else 0.0
    # The links cannot be slower than what was seen on them, whatever their data sheets say.
    alone = work * max(amount / topology.links[link].capacity for link, amount in usage.items())
    claimed = _scaled(usage, min(1.0, moving / alone) if alone else 1.0)
    return Cost(
        "collective",
        reading.grade,
        picoseconds(reading.latency),
        work,
        tuple(claimed.items()),
        work / moving if work else math.inf,
        tuple((link, amount * node.nbytes) for link, amount in usage.items()),
        reading.method,
        spread=reading.spread,
    )


def _offer(option: CollectiveOption, node: Node, topology: Topology, kinds: tuple[LinkKind, LinkKind]) -> Cost | None:
    if any(kind not in option.step for kind in kinds):
        return None
    group = node.devices
    hosts = rings.by_host(group, topology)
    inner, outer = option.step[kinds[0]], option.step[kinds[1]]
    form = _FORMS[option.algorithm](node.op, hosts, topology)
    if form is None:
        return None
    inner_steps, outer_steps, usage, phases = form
    latency = option.base + inner_steps * inner + outer_steps * outer
    alone = sum(max(amount / topology.links[link].capacity for link, amount in phase.items()) for phase in phases)
    grade = weakest([option.grade, *(topology.links[link].grade for link in usage)])
    return Cost(
        "collective",
        grade,
        picoseconds(latency),
        float(node.nbytes),
        tuple(usage.items()),
        option.bandwidth / alone,
        tuple((link, amount * node.nbytes) for link, amount in usage.items()),
        option.name,
    )


Form = tuple[int, int, "Usage", "list[Usage]"]
"""Steps within hosts, steps across hosts, bytes per link and byte of S, and the same in phases that follow."""


def _ring(op: str, hosts: list[list[str]], topology: Topology) -> Form | None:
    group = [rank for ranks in hosts for rank in ranks]
    passes = 2 if op == "all-reduce" else 1
    outer = passes * (len(hosts) - 1)
    if op == "all-to-all":
        pairs = ((a, b) for a in group for b in group if a != b)
        usage = rings.hop_usage(pairs, 1 / len(group), topology)
    else:
        usage = _scaled(rings.ring_usage(rings.rings(group, topology), topology), bus_factor(op, len(group)))
    return passes * (len(group) - 1) - outer, outer, usage, [usage]


def _tree(op: str, hosts: list[list[str]], topology: Topology) -> Form | None:
    if op not in {"all-reduce", "broadcast", "reduce"}:
        return None
    group = [rank for ranks in hosts for rank in ranks]
    passes = 2 if op == "all-reduce" else 1
    usage = rings.hop_usage(rings.tree_hops(group, topology), passes / 4, topology)
    inner = passes * _log2(max(len(ranks) for ranks in hosts))
    return inner, passes * _log2(len(hosts)), usage, [usage]


def _halving_doubling(op: str, hosts: list[list[str]], topology: Topology) -> Form | None:
    group = [rank for ranks in hosts for rank in ranks]
    size, rounds = len(group), _log2(len(group))
    if op not in {"all-reduce", "reduce-scatter", "all-gather"} or size != 2**rounds:
        return None
    passes = 2 if op == "all-reduce" else 1
    usage: Usage = {}
    for level in range(rounds):
        # The farthest partner gets half of the buffer, the next one a quarter, ...
        distance = size >> (level + 1)
        hops = ((group[rank], group[rank ^ distance]) for rank in range(size))
        usage = _added(usage, rings.hop_usage(hops, passes / 2 ** (level + 1), topology))
    inner = passes * _log2(len(hosts[0]))
    return inner, passes * rounds - inner, usage, [usage]


def _two_level(op: str, hosts: list[list[str]], topology: Topology) -> Form | None:
    size, count = len(hosts[0]), len(hosts)
    if op != "all-reduce" or count == 1 or size == 1 or any(len(ranks) != size for ranks in hosts):
        return None
    local: Usage = {}
    for ranks in hosts:
        local = _added(local, rings.ring_usage(rings.rings(ranks, topology), topology))
    local = _scaled(local, (size - 1) / size)
    across: Usage = {}
    for rail in zip(*hosts, strict=True):
        across = _added(across, rings.ring_usage([rail], topology))
    across = _scaled(across, 2 * (count - 1) / count / size)
    return 2 * (size - 1), 2 * (count - 1), _added(_scaled(local, 2), across), [local, across, local]


_FORMS = {"ring": _ring, "tree": _tree, "halving-doubling": _halving_doubling, "two-level": _two_level}


def _log2(count: int) -> int:
    return math.ceil(math.log2(count))


def _scaled(usage: Usage, factor: float) -> Usage:
    return {link: amount * factor for link, amount in usage.items()}


def _added(left: Usage, right: Usage) -> Usage:
    return {link: left.get(link, 0.0) + right.get(link, 0.0) for link in sorted({**left, **right})}
