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

A `tree` is a double binary tree, in which no rank sends more than S each way and pass; in a `binary-tree`, an inner
rank has two children and takes 2 S/beta a pass.

A ring over m hosts pays the network's alpha for the share of steps that cross hosts: of 2(n-1) steps, 2(m-1).
Two-level all-reduce of g ranks on each of m hosts is reduce-scatter (g, S), all-reduce (m, S/g) on every rail,
all-gather (g, S), one after another; two-level reduce-scatter is the first half of it, all-gather the second.

`nvls` lets the switch add and copy (NVLink SHARP), on one host: of S bytes a rank sends its own once and receives the
sum of its part, then sends that part and receives all: (1 + 1/n) S each way for an all-reduce, one step. It is the one
algorithm whose busbw may exceed the links': each byte is sent once and not 2(n-1)/n times.

One rank costs nothing; no bytes cost the latency alone.

Where a profile has measured tables that fit the group (`tables`), they say the time. Else, of the options it lists,
the one that would be fastest on idle links is taken. ``busbw`` is the rate that makes operations and group sizes
comparable: bytes / time x factor; for all but `nvls` it never exceeds the slowest link.
"""

from __future__ import annotations

import math
from itertools import combinations, pairwise
from typing import TYPE_CHECKING, NamedTuple, cast

from emulation.cost import Cost, tables
from emulation.cost.rings import ring_usage, rings, tree_usage, two_level_usage
from emulation.cost.usage import added, by_host, equal_hosts, hop_usage, pairwise_usage, scaled
from emulation.figures import weakest
from emulation.graph import WorkloadError
from emulation.topology import KINDS
from emulation.units import picoseconds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from emulation.collectives import CollectiveOption
    from emulation.cost.usage import Hosts, Usage
    from emulation.figures import Grade
    from emulation.graph import Node
    from emulation.topology import Topology
    from emulation.wiring import LinkKind


def bus_factor(op: str, ranks: int) -> float:
    """What S / time is multiplied by to give busbw (as nccl-tests defines it)."""
    if ranks == 1:
        return 0.0
    if op == "all-reduce":
        return 2 * (ranks - 1) / ranks
    return 1.0 if op in {"broadcast", "reduce"} else (ranks - 1) / ranks


def collective(node: Node, topology: Topology, method: str = "") -> Cost:
    """Cost of a collective over `node.devices`, by the fastest option the profile has for it.

    With `method` by the option of this name: a library does not choose anew when a link turns slow.

    Raises:
        WorkloadError: no option fits the group.
    """
    group = node.devices
    if len(group) == 1:
        return Cost("collective", "measured", method="alone")
    kinds = _kinds_of(group, topology)
    measured = _from_tables(node, topology, kinds[1])
    if measured is not None:
        return measured
    options = [option for option in topology.profile.collectives if method in {"", option.name}]
    offers = [offer for option in options if (offer := _offer(option, node, topology, kinds)) is not None]
    if not offers:
        raise WorkloadError(
            f"#{node.id} {node.op} {node.name!r}: profile {topology.profile.name!r} lists no collective that can do it "
            f"over {' and '.join(dict.fromkeys(kinds))} links with {len(group)} ranks"
        )
    return min(offers, key=idle_time)


def idle_time(cost: Cost) -> float:
    """Seconds it takes when nothing else uses its links."""
    return cost.fixed / 1e12 + (cost.work / cost.cap if cost.work else 0.0)


def _kinds_of(group: Sequence[str], topology: Topology) -> tuple[LinkKind, LinkKind]:
    hosts = by_host(group, topology)
    # On one host, equal on all that are like it.
    members = tuple(rank.partition("/")[2] for rank in hosts[0])
    key = (
        ("kinds", topology.group_of(group[0]), members)
        if len(hosts) == 1 and not topology.profile.routes
        else ("kinds", tuple(group))
    )
    if key not in topology.known:
        topology.known[key] = _step_kinds(hosts, topology)
    return cast("tuple[LinkKind, LinkKind]", topology.known[key])


def _step_kinds(hosts: Hosts, topology: Topology) -> tuple[LinkKind, LinkKind]:
    """(farthest link kind within hosts, farthest across hosts; equal on one host)."""
    order = rings(hosts[0], topology)[0] if len(hosts) == 1 else []
    hops = list(pairwise(order)) or [hop for ranks in hosts for hop in pairwise(ranks)]
    near = [topology.route(a, b).kind for a, b in hops]
    far = [topology.route(a[0], b[0]).kind for a, b in pairwise(hosts)]
    inner = max(near or far, key=KINDS.index)
    return inner, max(far or [inner], key=KINDS.index)


def _from_tables(node: Node, topology: Topology, farthest: LinkKind) -> Cost | None:
    """The measured time as a latency and a fluid over the links of a ring, so that it shares them; None without."""
    profile, hosts = topology.profile, by_host(node.devices, topology)
    if not profile.collective_tables or any(len(ranks) != len(hosts[0]) for ranks in hosts):
        return None
    shape, step = (len(node.devices), len(hosts)), tables.ring_step(profile.collectives, farthest)
    reading = tables.read(profile.collective_tables, node.op, shape, farthest, node.nbytes, step=step)
    work = _work("ring", node.op, node.devices, topology)
    if reading is None or work is None:
        return None
    alike = [ranks[0] for ranks in equal_hosts(hosts, topology)]
    if reading.method != "table" and any(topology.lanes(*pair) for ranks in alike for pair in combinations(ranks, 2)):
        # Directly linked: how many links a group can use depends on its size, and more ranks may take less time.
        return None
    moving = reading.seconds - reading.latency
    nbytes = float(node.nbytes) if moving > 0 else 0.0
    # The links cannot be slower than what was seen on them, whatever their data sheets say.
    alone = max(amount / topology.rated[link].capacity for link, amount in work.usage)
    part = min(1.0, moving / (nbytes * alone)) if nbytes else 1.0
    return Cost(
        "collective",
        reading.grade,
        picoseconds(reading.latency),
        nbytes,
        tuple([(link, amount * part) for link, amount in work.usage]),
        nbytes / moving if nbytes else math.inf,
        tuple([(link, amount * node.nbytes) for link, amount in work.usage]),
        reading.method,
        (work.inner, work.outer),
        spread=reading.spread,
        processor=reading.processor * len(node.devices),
    )


def _offer(option: CollectiveOption, node: Node, topology: Topology, kinds: tuple[LinkKind, LinkKind]) -> Cost | None:
    if any(kind not in option.step for kind in kinds):
        return None
    inner, outer = option.step[kinds[0]], option.step[kinds[1]]
    work = _work(option.algorithm, node.op, node.devices, topology)
    if work is None:
        return None
    latency = option.base + work.inner * inner + work.outer * outer
    return Cost(
        "collective",
        weakest([option.grade, work.grade]),
        picoseconds(latency),
        float(node.nbytes),
        work.usage,
        option.bandwidth / work.alone,
        tuple([(link, amount * node.nbytes) for link, amount in work.usage]),
        option.name,
        (work.inner, work.outer),
    )


class _Form(NamedTuple):
    """An algorithm over a group, for one byte."""

    inner: int
    """Steps within hosts."""
    outer: int
    """Steps across hosts."""
    usage: Usage
    phases: Sequence[Usage]
    """Parts of the usage that follow one another."""


class _Work(NamedTuple):
    """What all protocols of an algorithm share."""

    inner: int
    outer: int
    usage: tuple[tuple[int, float], ...]
    alone: float
    """Seconds per byte on idle links."""
    grade: Grade


def _work(algorithm: str, op: str, group: Sequence[str], topology: Topology) -> _Work | None:
    key = (algorithm, op, tuple(group))
    if key not in topology.known:
        hosts = by_host(group, topology)
        alone = len(hosts) == 1 and not topology.profile.routes
        topology.known[key] = (
            _on_one_host(algorithm, op, hosts[0], topology) if alone else _worked_out(algorithm, op, hosts, topology)
        )
    return cast("_Work | None", topology.known[key])


def _on_one_host(algorithm: str, op: str, ranks: list[str], topology: Topology) -> _Work | None:
    """As on the first host that has the same ranks, on its own links."""
    key = (algorithm, op, topology.group_of(ranks[0]), *(rank.partition("/")[2] for rank in ranks))
    if key not in topology.known:
        topology.known[key] = (ranks[0], _worked_out(algorithm, op, [ranks], topology))
    first, work = cast("tuple[str, _Work | None]", topology.known[key])
    if work is None or first == ranks[0]:
        return work
    return work._replace(usage=tuple([(topology.moved(link, first, ranks[0]), share) for link, share in work.usage]))


def _worked_out(algorithm: str, op: str, hosts: Hosts, topology: Topology) -> _Work | None:
    form = _FORMS[algorithm](op, hosts, topology)
    if form is None:
        return None
    links = topology.links
    alone = sum(max(amount / links[link].capacity for link, amount in phase.items()) for phase in form.phases)
    grade = weakest({links[link].grade for link in form.usage})
    return _Work(form.inner, form.outer, tuple(form.usage.items()), alone, grade)


def _ring(op: str, hosts: Hosts, topology: Topology) -> _Form | None:
    size = sum(map(len, hosts))
    passes = 2 if op == "all-reduce" else 1
    outer = passes * (len(hosts) - 1)
    if op == "all-to-all":
        usage = scaled(pairwise_usage(hosts, topology), 1 / size)
    else:
        usage = scaled(ring_usage(hosts, topology), bus_factor(op, size))
    return _Form(passes * (size - 1) - outer, outer, usage, [usage])


def _tree(op: str, hosts: Hosts, topology: Topology, *, double: bool = True) -> _Form | None:
    if op not in {"all-reduce", "broadcast", "reduce"}:
        return None
    passes = 2 if op == "all-reduce" else 1
    usage = tree_usage(op, hosts, topology, double=double)
    inner = passes * _log2(max(len(ranks) for ranks in hosts))
    return _Form(inner, passes * _log2(len(hosts)), usage, [usage])


def _binary_tree(op: str, hosts: Hosts, topology: Topology) -> _Form | None:
    return _tree(op, hosts, topology, double=False)


def _halving_doubling(op: str, hosts: Hosts, topology: Topology) -> _Form | None:
    group = [rank for ranks in hosts for rank in ranks]
    size, rounds = len(group), _log2(len(group))
    if op not in {"all-reduce", "reduce-scatter", "all-gather"} or size != 2**rounds:
        return None
    passes = 2 if op == "all-reduce" else 1
    parts = []
    for level in range(rounds):
        # The farthest partner gets half of the buffer, the next one a quarter, ...
        distance = size >> (level + 1)
        hops = ((group[rank], group[rank ^ distance]) for rank in range(size))
        parts.append(hop_usage(hops, passes / 2 ** (level + 1), topology))
    usage = added(*parts)
    inner = passes * _log2(len(hosts[0]))
    return _Form(inner, passes * rounds - inner, usage, [usage])


def _two_level(op: str, hosts: Hosts, topology: Topology) -> _Form | None:
    size, count = len(hosts[0]), len(hosts)
    if op not in {"all-reduce", "reduce-scatter", "all-gather"}:
        return None
    if count == 1 or size == 1 or any(len(ranks) != size for ranks in hosts):
        return None
    passes = 2 if op == "all-reduce" else 1
    local, across = two_level_usage(hosts, topology)
    local, across = scaled(local, (size - 1) / size), scaled(across, passes * (count - 1) / count)
    phases = {"all-reduce": [local, across, local], "reduce-scatter": [local, across], "all-gather": [across, local]}[
        op
    ]
    return _Form(passes * (size - 1), passes * (count - 1), added(scaled(local, passes), across), phases)


def _nvls(op: str, hosts: Hosts, topology: Topology) -> _Form | None:
    ranks = hosts[0]
    size = len(ranks)
    # Own data up and sums down, then sums up and all data down.
    up, down = {"all-reduce": (1 + 1 / size, 1 + 1 / size), "reduce-scatter": (1.0, 1 / size)}.get(op, (1 / size, 1.0))
    if len(hosts) > 1 or size == 1 or op not in {"all-reduce", "reduce-scatter", "all-gather"}:
        return None
    for switch in topology.next_to(ranks[0]):
        ways = [(topology.joining(rank, switch), topology.joining(switch, rank)) for rank in ranks]
        numbers = [number for way in ways for number in way if number is not None]
        if len(numbers) == 2 * size and switch not in topology.order and topology.links[numbers[0]].kind == "nvlink":
            usage = dict(sorted((number, (up, down)[place % 2]) for place, number in enumerate(numbers)))
            return _Form(1, 0, usage, [usage])
    return None


_FORMS = {
    "ring": _ring,
    "tree": _tree,
    "binary-tree": _binary_tree,
    "halving-doubling": _halving_doubling,
    "two-level": _two_level,
    "nvls": _nvls,
}


def _log2(count: int) -> int:
    return math.ceil(math.log2(count))
