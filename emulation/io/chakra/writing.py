"""From a workload graph to Chakra traces.

Each device becomes a rank with a file of its own. What two or more devices do together becomes a node in each of their
files: a transfer a send and a receive, a collective one call per rank. The order of streams, which Chakra does not
know, becomes control dependencies.

Files of different ranks have no edges between them, so a node may only wait for nodes that share a device with it;
anything else would be lost and is refused.
"""

from __future__ import annotations

import graphlib
import inspect
import json
from functools import cache
from typing import TYPE_CHECKING, Any

from emulation.graph import Workload, WorkloadError, check_acyclic
from emulation.io import FormatError
from emulation.io.chakra.messages import OWN, schema, set_attribute, write_message
from emulation.meetings import meetings
from emulation.units import PICOSECONDS_PER_SECOND, picoseconds

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from emulation.evaluate.result import Result
    from emulation.graph import Node

VERSION = "0.0.4"
"""Of the Chakra schema."""
COLLECTIVES = {
    "all-reduce": "ALL_REDUCE",
    "reduce": "REDUCE",
    "all-gather": "ALL_GATHER",
    "broadcast": "BROADCAST",
    "all-to-all": "ALL_TO_ALL",
    "reduce-scatter": "REDUCE_SCATTER",
}
BARE_KEYWORDS = frozenset({"after", "name", "stream"})


def write(
    prefix: Path, workload: Workload, *, ranks: Sequence[str] = (), result: Result | None = None
) -> tuple[list[Path], Path]:
    """Write `<prefix>.<rank>.et` for every rank, and `<prefix>.groups.json`.

    Args:
        prefix: directory and name of the files.
        workload: what is done; of a program, what its `expand` gives.
        ranks: the device of each rank, rank 0 first; by default all devices in the order in which they appear.
        result: of simulating `workload`; gives every node its start and duration, for tools that replay them.

    Returns:
        The trace files in rank order, and the file of the groups.

    Raises:
        WorkloadError: the workload is wrong in itself, or has an edge between devices that share no node with it.
        FormatError: protobuf is missing, or a number does not fit the format.
    """
    before = workload.predecessors()
    check_acyclic(workload, before)
    meetings(workload)
    trace = _Trace(workload, ranks)
    paths = []
    for rank, device in enumerate(trace.ranks):
        path = prefix.with_name(f"{prefix.name}.{rank}.et")
        with path.open("wb") as file:
            for message in trace.messages(device, before, result):
                write_message(file, message)
        paths.append(path)
    groups = prefix.with_name(f"{prefix.name}.groups.json")
    members = {str(number): [trace.ranks[device] for device in group] for group, number in trace.groups.items()}
    groups.write_text(json.dumps(members, indent=1) + "\n", "utf-8")
    return paths, groups


@cache
def keywords(kind: str) -> tuple[str, ...]:
    """What `Workload.<kind>` takes by keyword beside edges, name and stream, and Chakra has no field for."""
    parameters = inspect.signature(getattr(Workload, kind)).parameters.values()
    return tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in BARE_KEYWORDS)


def places(node: Node) -> tuple[str, ...]:
    """The devices in whose traces a node appears."""
    match node.kind:
        case "send":
            return node.devices[:1]
        case "recv":
            return node.devices[1:]
    return tuple(dict.fromkeys(node.devices))


class _Trace:
    """What is known of the whole workload while its ranks are written one by one."""

    def __init__(self, workload: Workload, ranks: Sequence[str]) -> None:
        self.types = schema()
        self.workload = workload
        used = dict.fromkeys(device for node in workload.nodes for device in (*node.devices, *node.group))
        self.ranks = {device: rank for rank, device in enumerate(ranks or used)}
        if missing := [device for device in used if device not in self.ranks]:
            raise WorkloadError(f"{missing[0]!r} takes part in the workload and is none of the ranks")
        self.of: dict[str, list[Node]] = {}
        self.groups: dict[tuple[str, ...], int] = {}
        for node in workload.nodes:
            if node.kind == "chain":
                raise WorkloadError(f"{workload.label(node.id)} is many in one: write what `Program.expand` gives")
            for device in places(node):
                self.of.setdefault(device, []).append(node)
            if node.kind in {"collective", "enter"}:
                # 0 stands for all ranks in ASTRA-sim.
                self.groups.setdefault(_group(node), len(self.groups) + 1)
        self.tags = _tags(workload)
        self.edges = _edges(workload)

    def messages(self, device: str, before: Sequence[Sequence[int]], result: Result | None) -> Iterator[Any]:
        """The messages of one rank's file."""
        metadata = self.types.GlobalMetadata(version=VERSION)
        set_attribute(metadata, f"{OWN}device", device)
        set_attribute(metadata, f"{OWN}ranks", len(self.ranks))
        yield metadata
        for node in self.of.get(device, ()):
            try:
                yield self._message(node, device, before[node.id], result)
            except ValueError as error:
                raise FormatError(f"{self.workload.label(node.id)} does not fit a Chakra trace: {error}") from error

    def _message(self, node: Node, device: str, before: Sequence[int], result: Result | None) -> Any:
        explicit = self.edges[node.id]
        streams = [first for first in before if first not in explicit and self._beside(first, node)]
        message = self.types.Node(id=node.id, name=node.name or node.op or node.kind)
        message.type = self.types.NodeType[_type(node, device)]
        message.data_deps.extend(sorted(first for first in explicit if device in places(self.workload.nodes[first])))
        message.ctrl_deps.extend(sorted(first for first in streams if device in places(self.workload.nodes[first])))
        standard = {"is_cpu_op": node.kind == "host", **self._standard(node)}
        for name, value in standard.items():
            set_attribute(message, name, value)
        for name, value in _own(node).items():
            set_attribute(message, OWN + name, value)
        _time(message, node, result)
        return message

    def _beside(self, first: int, node: Node) -> bool:
        """Whether an edge comes from the order of a stream both are on."""
        earlier = self.workload.nodes[first]
        shared = set(earlier.devices) & set(node.devices)
        return bool(earlier.stream) and earlier.stream == node.stream and bool(shared)

    def _standard(self, node: Node) -> dict[str, Any]:
        match node.kind:
            case "compute":
                return {"num_ops": round(node.flops), "tensor_size": node.nbytes}
            case "copy" | "transfer" if node.devices[0] == node.devices[1]:
                return {"tensor_size": node.nbytes}
            case "copy":
                return {"tensor_size": node.nbytes, **self._ends(node)}
            case "transfer" | "send" | "recv":
                return {"comm_size": node.nbytes, "comm_tag": self.tags[_tag_key(node)], **self._ends(node)}
            case "collective" | "enter":
                code = self.types.CollectiveCommType[COLLECTIVES[node.op]]
                size = rank_bytes(node.op, node.nbytes, len(_group(node)))
                name = str(self.groups[_group(node)])
                return {"comm_type": code, "comm_size": size, "comm_priority": 0, "pg_name": name}
            case "alloc" | "free":
                return {"tensor_size": node.nbytes}
        return {}

    def _ends(self, node: Node) -> dict[str, int]:
        return {"comm_src": self.ranks[node.devices[0]], "comm_dst": self.ranks[node.devices[1]]}


def rank_bytes(op: str, nbytes: int, ranks: int) -> int:
    """What one rank brings to a collective over a buffer of `nbytes`, as ASTRA-sim counts it.

    An all-gather's size is that of a shard, rounded up; every other operation's that of the whole buffer (ASTRA-sim,
    system/collective/Ring.cc).
    """
    return -(-nbytes // ranks) if op == "all-gather" else nbytes


def _group(node: Node) -> tuple[str, ...]:
    return node.group if node.kind == "enter" else node.devices


def _type(node: Node, device: str) -> str:
    match node.kind:
        case "compute" | "host":
            return "COMP_NODE"
        case "copy" | "transfer" if node.devices[0] == node.devices[1]:
            return "MEM_LOAD_NODE"
        case "copy":
            return "MEM_STORE_NODE" if device == node.devices[0] else "MEM_LOAD_NODE"
        case "send":
            return "COMM_SEND_NODE"
        case "recv":
            return "COMM_RECV_NODE"
        case "transfer":
            return "COMM_SEND_NODE" if device == node.devices[0] else "COMM_RECV_NODE"
        case "collective" | "enter":
            return "COMM_COLL_NODE"
    return "METADATA_NODE"


def _own(node: Node) -> dict[str, Any]:
    """What Chakra has no field for, and what its fields would round."""
    found: dict[str, Any] = {"kind": node.kind, "stream": node.stream, "name": node.name}
    if node.kind == "compute" and float(round(node.flops)) != node.flops:
        found["flops"] = float(node.flops)
    if node.kind in {"collective", "enter"} and node.op == "all-gather":
        found["nbytes"] = node.nbytes
    if node.kind == "host":
        found["duration_ps"] = picoseconds(node.seconds)
    if node.kind == "free":
        found["frees"] = node.frees
    for name in keywords(node.kind):
        value = getattr(node, name)
        found[name] = "x".join(map(str, value)) if name == "shape" else value
    return found


def _time(message: Any, node: Node, result: Result | None) -> None:
    """Start and duration, in whole microseconds as the format has it; exact ones beside them."""
    if result is not None:
        start, seconds = result.start(node.id), result.finish(node.id) - result.start(node.id)
        message.start_time_micros = int(start * 1e6)
        if node.kind != "host":
            set_attribute(message, f"{OWN}duration_ps", picoseconds(seconds))
    else:
        seconds = node.seconds if node.kind == "host" else 0.0
    message.duration_micros = round(picoseconds(seconds) * 10**6 / PICOSECONDS_PER_SECOND)


def _tag_key(node: Node) -> object:
    # A transfer's halves meet by its id, whatever else goes the same way.
    return node.id if node.kind == "transfer" else node.tag


def _tags(workload: Workload) -> Mapping[object, int]:
    """A number for every tag: its own where it is one, and one that no other has where it is not."""
    keys = dict.fromkeys(_tag_key(n) for n in workload.nodes if n.kind in {"send", "recv", "transfer"})
    numbers: dict[object, int] = {}
    for key in keys:
        if isinstance(key, str) and key.isdecimal() and len(key) < 10 and str(int(key)) == key:
            numbers[key] = int(key)
    taken = set(numbers.values())
    following = 0
    for key in keys:
        if key not in numbers:
            while following in taken:
                following += 1
            numbers[key] = following
            taken.add(following)
    return numbers


def _edges(workload: Workload) -> list[set[int]]:
    """For each node the nodes it waits for by an edge, with barriers replaced by what they wait for.

    Raises:
        WorkloadError: an edge between nodes of different devices.
    """
    direct = [set(node.after) for node in workload.nodes]
    for first, second in workload.orders:
        direct[second].add(first)
    barriers = {node.id: direct[node.id] for node in workload.nodes if node.kind == "barrier"}
    sorter = graphlib.TopologicalSorter({b: [f for f in firsts if f in barriers] for b, firsts in barriers.items()})
    for barrier in sorter.static_order():
        direct[barrier] = _expanded(direct[barrier], barriers, direct)
    found = [direct[n] if n in barriers else _expanded(direct[n], barriers, direct) for n in range(len(direct))]
    for node in workload.nodes:
        here = set(places(node))
        for first in sorted(found[node.id]) if here else ():
            there = places(workload.nodes[first])
            if here.isdisjoint(there):
                raise WorkloadError(
                    f"{workload.label(node.id)} on {', '.join(sorted(here))} waits for {workload.label(first)} on "
                    f"{', '.join(there)}: a Chakra trace has no edges between ranks; let one send to the other"
                )
    return found


def _expanded(firsts: Iterable[int], barriers: Mapping[int, object], direct: Sequence[set[int]]) -> set[int]:
    found: set[int] = set()
    for first in firsts:
        found |= direct[first] if first in barriers else {first}
    return found
