"""Who meets whom: the halves of a transfer, and the ranks of a collective.

A graph lowered from per-rank programs has one `send` and one `recv` for a transfer, and one `enter` per rank for a
collective. They are matched as MPI and NCCL match them: by order of posting, for each (source, destination, tag) and
each group. What does not match would hang a real job, so it is refused here, with both sides in the message.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import zip_longest
from typing import TYPE_CHECKING, NamedTuple

from emulation.graph import WorkloadError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from emulation.graph import Node, Workload


class Meeting(NamedTuple):
    """Nodes that start together, when the last is ready, and end together."""

    nodes: tuple[int, ...]
    action: Node
    """What they do, as one node."""


def meetings(workload: Workload) -> list[Meeting]:
    """Every node in exactly one meeting, in the order of the meetings' first nodes.

    Raises:
        WorkloadError: a send without its receive (or the reverse), unequal sizes, or ranks of one group that call
            different collectives or in different orders.
    """
    found = [Meeting((n.id,), n) for n in workload.nodes if n.kind not in {"send", "recv", "enter"}]
    found += _transfers(workload)
    found += _collectives(workload)
    return sorted(found, key=lambda meeting: meeting.nodes[0])


def _transfers(workload: Workload) -> Iterator[Meeting]:
    halves: dict[tuple[tuple[str, ...], str], dict[str, list[Node]]] = {}
    for node in workload.nodes:
        if node.kind in {"send", "recv"}:
            sides = halves.setdefault((node.devices, node.tag), {"send": [], "recv": []})
            sides[node.kind].append(node)
    for sides in halves.values():
        for send, recv in zip_longest(sides["send"], sides["recv"]):
            if send is None or recv is None:
                alone = send or recv
                other = "receive" if send else "send"
                where = f"{alone.devices[0]} -> {alone.devices[1]}, tag {alone.tag!r}"
                raise WorkloadError(f"{workload.label(alone.id)} ({where}) has no matching {other}")
            if send.nbytes != recv.nbytes:
                what = f"{workload.label(send.id)} of {send.nbytes} B, {workload.label(recv.id)} of {recv.nbytes} B"
                raise WorkloadError(f"sizes differ: {what}")
            first, second = sorted((send.id, recv.id))
            yield Meeting((first, second), replace(send, kind="transfer", name=send.name or recv.name))


def _collectives(workload: Workload) -> Iterator[Meeting]:
    calls: dict[tuple[str, ...], dict[str, list[Node]]] = {}
    for node in workload.nodes:
        if node.kind == "enter":
            ranks = calls.setdefault(node.group, {rank: [] for rank in node.group})
            ranks[node.devices[0]].append(node)
    for group, ranks in calls.items():
        for together in zip_longest(*ranks.values()):
            present = [node for node in together if node is not None]
            first = present[0]
            if len(present) < len(ranks) or any((n.op, n.nbytes) != (first.op, first.nbytes) for n in present):
                raise WorkloadError(_different_orders(workload, ranks))
            ids = tuple(sorted(node.id for node in present))
            yield Meeting(ids, replace(first, kind="collective", devices=group))


def _different_orders(workload: Workload, ranks: Mapping[str, list[Node]]) -> str:
    lines = [
        f"  {rank}: " + (", ".join(f"{workload.label(n.id)} ({n.nbytes} B)" for n in calls[:8]) or "nothing")
        for rank, calls in list(ranks.items())[:8]
    ]
    return "the ranks of a group call different collectives, or in different orders:\n" + "\n".join(lines)
