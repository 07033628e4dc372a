"""From Chakra traces to a workload graph.

Files written by `writing` give the workload back, node by node. Files of other tools have no streams: kernels of a rank
run one after another on `main`, what is marked as a CPU operation on `cpu`, collectives on `comm`, each in an order
that keeps the dependencies and otherwise follows the ids, as ASTRA-sim issues them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from emulation.graph import Workload, WorkloadError, check_acyclic
from emulation.io import FormatError
from emulation.io.chakra.messages import OWN, schema
from emulation.io.chakra.parts import Part, files, gathered, issued, metadata, nodes_of
from emulation.io.chakra.writing import COLLECTIVES, keywords
from emulation.meetings import meetings

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from emulation.figures import Grade
    from emulation.graph import Op

OPS: dict[str, Op] = {code: op for op, code in COLLECTIVES.items()}  # type: ignore[misc]
OPS["REDUCE_SCATTER_BLOCK"] = "reduce-scatter"
EVERYONE = frozenset({"", "0"})
"""Names by which ASTRA-sim means the group of all ranks."""


def read(
    prefix: Path,
    *,
    devices: Sequence[str] = (),
    groups: Path | None = None,
    dtype: str = "fp32",
    grade: Grade = "prior",
    recorded: bool = False,
) -> Workload:
    """Read `<prefix>.<rank>.et` of every rank.

    Args:
        prefix: directory and name of the files, without rank and suffix.
        devices: the device of each rank; files written here name theirs.
        groups: JSON file, process group -> ranks; by default `<prefix>.groups.json` if it is there.
        dtype: number format of kernels of traces that do not say.
        grade: of durations taken from a trace.
        recorded: take the recorded duration of a kernel, where it has one, instead of its operations and bytes.

    Raises:
        FormatError: a file is missing or broken, ids are used twice, dependencies dangle or form a cycle (named), an
            attribute is where it would not be read, sends and receives or the ranks' collectives do not match. Names
            file and node.
    """
    reader = _Reader(prefix, devices, groups, dtype, grade, recorded)
    return reader.workload()


@dataclass
class _Reader:
    prefix: Path
    devices: Sequence[str]
    group_file: Path | None
    dtype: str
    grade: Grade
    recorded: bool
    work: Workload = field(default_factory=Workload)
    made: dict[tuple[int, int], int] = field(default_factory=dict)
    """(rank, node of its file) -> node of the workload."""
    places: list[str] = field(default_factory=list)
    """Where each node of the workload was read."""
    later: list[tuple[tuple[int, int], int]] = field(default_factory=list)
    """Edges from nodes that were not there yet."""

    def workload(self) -> Workload:
        paths = files(self.prefix)
        heads = [metadata(path) for path in paths]
        named = [str(head.get(f"{OWN}device") or "") for head in heads]
        if (ranks := heads[0].get(f"{OWN}ranks", len(paths))) != len(paths):
            raise FormatError(f"{self.prefix}: {len(paths)} files of a trace of {ranks} ranks")
        self._name_devices(paths, named)
        parts = [nodes_of(path, rank) for rank, path in enumerate(paths)]
        self._load_groups()
        ours = all(named)
        everything = [part for of_rank in parts for part in (of_rank if ours else issued(of_rank))]
        if ours:
            everything.sort(key=lambda part: part.id)
        for together in gathered(everything):
            self._add(together)
        for first, node in self.later:
            self.work.order(self.made[first], node)
        self.work.name = self.prefix.name
        _check(self.work, self.places)
        return self.work

    def _name_devices(self, paths: Sequence[Path], named: Sequence[str]) -> None:
        if not self.devices:
            for path, name in zip(paths, named, strict=True):
                if not name:
                    raise FormatError(f"{path}: does not say which device it is of; give the device of each rank")
            self.devices = named
        if len(self.devices) < len(paths):
            raise FormatError(f"{self.prefix}: {len(paths)} ranks, and only {len(self.devices)} devices to put them on")
        self.devices = self.devices[: len(paths)]
        if len(set(self.devices)) < len(self.devices):
            raise FormatError(f"{self.prefix}: two ranks on one device among {', '.join(self.devices)}")

    def _load_groups(self) -> None:
        default = self.prefix.with_name(f"{self.prefix.name}.groups.json")
        path = self.group_file or (default if default.is_file() else None)
        self.groups: dict[str, tuple[str, ...]] = {}
        if path is None:
            return
        try:
            for name, ranks in json.loads(path.read_text("utf-8")).items():
                self.groups[name] = tuple(self.devices[self._rank(rank)] for rank in ranks)
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise FormatError(f"{path}: not a map of process groups to lists of ranks: {error}") from error

    def _rank(self, rank: Any) -> int:
        if not isinstance(rank, int) or not 0 <= rank < len(self.devices):
            raise ValueError(f"there is no rank {rank}")
        return rank

    def _add(self, together: list[Part]) -> None:
        first = together[0]
        edges = {(part.rank, dep) for part in together for dep in (*part.message.data_deps, *part.message.ctrl_deps)}
        known = sorted({self.made[edge] for edge in edges if edge in self.made})
        try:
            node = self._ours(together, known) if first.kind else self._foreign(first, known)
        except (ValueError, TypeError) as error:
            # Of another type than it should be may be what is in our own attributes, which anybody can write.
            raise FormatError(f"{first}: {error}") from error
        self.places.append(str(first))
        for part in together:
            self.made[part.rank, part.id] = node
        self.later += [(edge, node) for edge in sorted(edges) if edge not in self.made]

    def _ours(self, together: list[Part], after: list[int]) -> int:
        part = together[0]
        kind, get = part.kind, part.attributes.get
        if kind not in {"host", "compute", "copy", "transfer", "send", "recv", "collective", "enter", "alloc", "free"}:
            raise ValueError(f"{kind!r} is no kind of node")
        common: dict[str, Any] = {"after": after, "name": get(f"{OWN}name") or ""}
        if kind not in {"send", "recv", "alloc", "free"}:
            common["stream"] = get(f"{OWN}stream") or ""
        common |= {name: get(OWN + name) for name in keywords(kind) if get(OWN + name) is not None}
        if "shape" in common:
            common["shape"] = tuple(int(size) for size in common["shape"].split("x") if size)
        match kind:
            case "host":
                return self.work.host(self._device(part), part.seconds, **common)
            case "compute":
                flops = get(f"{OWN}flops", part.attributes.get("num_ops", 0))
                return self.work.compute(self._device(part), flops, get("tensor_size", 0), **common)
            case "alloc":
                return self.work.alloc(self._device(part), part.need("tensor_size"), **common)
            case "free":
                taken = self.made.get((part.rank, part.need(f"{OWN}frees")))
                if taken is None:
                    raise ValueError("frees memory that was not allocated before it")
                return self.work.free(taken, **common)
            case "collective":
                _complete(together, [self.devices.index(device) for device in self._group(part)])
                return self.work.collective(self._op(part), self._group(part), self._nbytes(part), **common)
            case "copy" | "transfer":
                src, dst = self._ends(part)
                _complete(together, [src, dst])
                size = part.need("comm_size" if part.type.startswith("COMM") else "tensor_size")
                method = self.work.copy if kind == "copy" else self.work.transfer
                return method(self.devices[src], self.devices[dst], size, **common)
        return self._call(part, common)

    def _foreign(self, part: Part, after: list[int]) -> int:
        name, device = part.message.name, self._device(part)
        size = part.attributes.get("tensor_size", 0)
        match part.type:
            case "METADATA_NODE" | "INVALID_NODE":
                return self.work.barrier(after=after, name=name)
            case "MEM_LOAD_NODE" | "MEM_STORE_NODE":
                return self.work.copy(device, device, size, after=after, name=name, stream="memory")
            case "COMP_NODE":
                # The feeder takes an operation for the CPU's unless it says otherwise.
                cpu = part.attributes.get("is_cpu_op", True)
                flops = part.attributes.get("num_ops", 0)
                if not cpu and (flops or size) and not (self.recorded and part.seconds):
                    return self.work.compute(device, flops, size, dtype=self.dtype, after=after, name=name)
                stream = "cpu" if cpu else "main"
                return self.work.host(device, part.seconds, after=after, name=name, stream=stream, grade=self.grade)
            case "COMM_SEND_NODE" | "COMM_RECV_NODE" | "COMM_COLL_NODE":
                return self._call(part, {"after": after, "name": name})
        raise ValueError(f"nodes of type {part.type} are not understood")

    def _call(self, part: Part, common: dict[str, Any]) -> int:
        """A rank's half of a transfer, or its call of a collective."""
        if part.type == "COMM_COLL_NODE":
            return self.work.enter(self._op(part), self._device(part), self._group(part), self._nbytes(part), **common)
        src, dst = self._ends(part)
        sending = part.type == "COMM_SEND_NODE"
        if (src if sending else dst) != part.rank:
            end = f"comm_src {src}" if sending else f"comm_dst {dst}"
            raise ValueError(f"{end} in the trace of rank {part.rank}")
        common.setdefault("tag", str(part.attributes.get("comm_tag", 0)))
        method = self.work.send if sending else self.work.recv
        return method(self.devices[src], self.devices[dst], part.need("comm_size"), **common)

    def _device(self, part: Part) -> str:
        return self.devices[part.rank]

    def _ends(self, part: Part) -> tuple[int, int]:
        get = part.attributes.get
        return self._rank(get("comm_src", part.rank)), self._rank(get("comm_dst", part.rank))

    def _op(self, part: Part) -> Op:
        code = part.need("comm_type")
        names = schema().CollectiveCommType
        name = next((name for name, number in names.items() if number == code), str(code))
        if name == "BARRIER":
            # Everybody waits for everybody, over the network: an all-reduce of nothing.
            return "all-reduce"
        if name not in OPS:
            raise ValueError(f"collective {name} is not modelled; there is {', '.join(sorted(OPS))} and BARRIER")
        return OPS[name]

    def _group(self, part: Part) -> tuple[str, ...]:
        name = part.attributes.get("pg_name", "")
        if name in self.groups:
            return self.groups[name]
        if name in EVERYONE:
            return tuple(self.devices)
        known = ", ".join(self.groups) or "none were given"
        raise ValueError(f"process group {name!r} is not among those of the group file ({known})")

    def _nbytes(self, part: Part) -> int:
        exact = part.attributes.get(f"{OWN}nbytes")
        if exact is not None:
            return int(exact)
        if part.need("comm_type") == schema().CollectiveCommType["BARRIER"]:
            return 0
        shards = len(self._group(part)) if self._op(part) == "all-gather" else 1
        return int(part.need("comm_size")) * shards


def _complete(together: Sequence[Part], ranks: Sequence[int]) -> None:
    """Refuse a node that is not in the files of all ranks that take part in it."""
    there = {part.rank for part in together}
    for rank in ranks:
        if rank not in there:
            raise ValueError(f"the {together[0].kind} is not in the trace of rank {rank}, which takes part in it")


def _check(work: Workload, places: Sequence[str]) -> None:
    """Refuse cycles and what does not meet; where it fails the nodes are named by their files."""
    try:
        check_acyclic(work, work.predecessors())
        meetings(work)
    except WorkloadError:
        nodes = [replace(node, name=place) for node, place in zip(work.nodes, places, strict=True)]
        named = Workload(work.name, nodes, work.orders)
        try:
            check_acyclic(named, named.predecessors())
            meetings(named)
        except WorkloadError as error:
            raise FormatError(str(error)) from error
