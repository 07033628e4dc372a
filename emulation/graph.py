"""The workload graph: what happens on which device, and what must have happened before.

One form for every engine. Nodes do something (compute, copy, transfer, take part in a collective, hold memory); edges
say what comes first. Two kinds of order exist: `after=` edges, and *streams*. A stream is a serial queue on a device,
as in CUDA: nodes on one stream of one device run one after another in the order they were added, whatever their edges.
A node without a stream (the default for transfers) waits for its edges alone.

A `Workload` is built by calling its methods; each returns the node's id, to be used in later `after=`::

    work = Workload()
    grad = work.compute("host0/gpu0", flops=2e12, dtype="bf16")
    work.collective("all-reduce", ["host0/gpu0", "host0/gpu1"], nbytes=2**20, after=[grad])

Nothing here knows how long anything takes: that is `cost`, on a profile.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from emulation.figures import Grade

Kind = Literal[
    "host", "compute", "copy", "transfer", "collective", "alloc", "free", "barrier", "send", "recv", "enter", "chain"
]
Op = Literal["all-reduce", "reduce-scatter", "all-gather", "broadcast", "reduce", "all-to-all"]
OPS: tuple[Op, ...] = ("all-reduce", "reduce-scatter", "all-gather", "broadcast", "reduce", "all-to-all")


class WorkloadError(ValueError):
    """A workload that cannot be carried out; the message names the nodes."""


@dataclass(frozen=True, slots=True)
class Node:
    """One thing to do. Only the fields of its kind are set."""

    id: int
    kind: Kind
    name: str
    devices: tuple[str, ...]
    """Where it happens; (source, destination) for copies and transfers, the group in rank order for collectives."""
    stream: str
    """Serial queue it takes on every one of its devices; empty for none."""
    after: tuple[int, ...]
    nbytes: int = 0
    seconds: float = 0.0
    flops: float = 0.0
    dtype: str = ""
    family: str = ""
    """What sort of operator a kernel is (`matmul`, `normalization`, ...); empty for the device's overall curve."""
    shape: tuple[int, ...] = ()
    """(m, n, k) of a matrix product, where efficiency depends on more than the work; empty where unknown."""
    op: Op | Literal[""] = ""
    tag: str = ""
    group: tuple[str, ...] = ()
    grade: Grade = "prior"
    """Of `seconds`, for host nodes."""
    cap: float = math.inf
    """Bytes per second that software lets a transfer reach."""
    efficiency: float = 1.0
    """Payload per byte on network links, where a protocol adds headers."""
    frees: int = -1


@dataclass
class Workload:
    """A graph under construction, and when it is done the input of `simulate`.

    Methods raise `WorkloadError` for what is wrong in itself (a negative size, an unknown predecessor); `validate`
    finds what is wrong with the whole.
    """

    name: str = ""
    nodes: list[Node] = field(default_factory=list)
    orders: list[tuple[int, int]] = field(default_factory=list)
    """Extra edges (before, after) added by `order`."""

    def host(
        self,
        device: str,
        seconds: float,
        *,
        after: Iterable[int] = (),
        name: str = "",
        stream: str = "main",
        grade: Grade = "prior",
    ) -> int:
        """Keep a stream of a device busy for a known time; `grade` is that of the figures the time came from."""
        if not (seconds >= 0 and math.isfinite(seconds)):
            raise WorkloadError(f"host {name!r}: {seconds} is not a duration in seconds")
        return self._add("host", (device,), stream, after, name, seconds=seconds, grade=grade)

    def compute(
        self,
        device: str,
        flops: float,
        nbytes: int = 0,
        *,
        dtype: str = "fp32",
        family: str = "",
        shape: Sequence[int] = (),
        after: Iterable[int] = (),
        name: str = "",
        stream: str = "main",
    ) -> int:
        """A kernel of `flops` operations in `dtype` that moves `nbytes` to and from the device's memory.

        `family` names the sort of operator and `shape` the (m, n, k) of a matrix product: a profile may hold an
        efficiency curve for each family.
        """
        if not (flops >= 0 and math.isfinite(flops)):
            raise WorkloadError(f"compute {name!r}: {flops} is not a number of operations")
        what: dict[str, object] = {"flops": flops, "dtype": dtype, "family": family, "shape": tuple(shape)}
        return self._add("compute", (device,), stream, after, name, nbytes=nbytes, **what)

    def copy(
        self,
        src: str,
        dst: str,
        nbytes: int,
        *,
        after: Iterable[int] = (),
        name: str = "",
        stream: str = "main",
    ) -> int:
        """A memory copy driven by `dst` or within one device; on a host, by one core at its memcpy rate."""
        return self._add("copy", (src, dst), stream, after, name, nbytes=nbytes)

    def transfer(
        self,
        src: str,
        dst: str,
        nbytes: int,
        *,
        after: Iterable[int] = (),
        name: str = "",
        stream: str = "",
        cap: float = math.inf,
        efficiency: float = 1.0,
        seconds: float = 0.0,
    ) -> int:
        """Move bytes along the route from `src` to `dst`, sharing its links with whatever else uses them.

        Latency is that of the route plus `seconds` of software. `cap` (bytes per second) bounds the rate by what the
        software can do; `efficiency` is payload per byte on network links. From a device to itself it goes through
        the host's memory, as between two processes.
        """
        if not (cap > 0 and 0 < efficiency <= 1 and seconds >= 0):
            raise WorkloadError(f"transfer {name!r}: needs cap > 0, 0 < efficiency <= 1 and seconds >= 0")
        return self._add(
            "transfer",
            (src, dst),
            stream,
            after,
            name,
            nbytes=nbytes,
            cap=cap,
            efficiency=efficiency,
            seconds=seconds,
        )

    def send(self, src: str, dst: str, nbytes: int, *, tag: str = "", after: Iterable[int] = (), name: str = "") -> int:
        """The sender's half of a transfer: it moves when the n-th `recv` of (src, dst, tag) is ready as well."""
        return self._add("send", (src, dst), "", after, name, nbytes=nbytes, tag=tag)

    def recv(self, src: str, dst: str, nbytes: int, *, tag: str = "", after: Iterable[int] = (), name: str = "") -> int:
        """The receiver's half of a transfer; see `send`."""
        return self._add("recv", (src, dst), "", after, name, nbytes=nbytes, tag=tag)

    def collective(
        self,
        op: Op,
        group: Sequence[str],
        nbytes: int,
        *,
        after: Iterable[int] = (),
        name: str = "",
        stream: str = "comm",
    ) -> int:
        """A collective of the whole group, in rank order.

        `nbytes` is the full buffer S: what each rank holds before an all-reduce, reduce-scatter, broadcast, reduce or
        all-to-all, and after an all-gather.
        """
        self._check_op(op, group)
        return self._add("collective", tuple(group), stream, after, name, nbytes=nbytes, op=op)

    def enter(
        self,
        op: Op,
        device: str,
        group: Sequence[str],
        nbytes: int,
        *,
        after: Iterable[int] = (),
        name: str = "",
        stream: str = "comm",
    ) -> int:
        """One rank's call of a collective: the n-th calls of all ranks of a group belong together."""
        self._check_op(op, group)
        if device not in group:
            raise WorkloadError(f"enter {name!r}: {device} is not in its group {list(group)}")
        return self._add("enter", (device,), stream, after, name, nbytes=nbytes, op=op, group=tuple(group))

    def alloc(self, device: str, nbytes: int, *, after: Iterable[int] = (), name: str = "") -> int:
        """Take memory of a device; it is held until a `free` of this node, or to the end."""
        return self._add("alloc", (device,), "", after, name, nbytes=nbytes)

    def free(self, allocation: int, *, after: Iterable[int] = (), name: str = "") -> int:
        """Give back what the node `allocation` took."""
        if not (0 <= allocation < len(self.nodes)) or self.nodes[allocation].kind != "alloc":
            raise WorkloadError(f"free {name!r}: node {allocation} is not an alloc")
        taken = self.nodes[allocation]
        earlier = (allocation, *after)
        return self._add("free", taken.devices, "", earlier, name, nbytes=taken.nbytes, frees=allocation)

    def barrier(self, *, after: Iterable[int] = (), name: str = "") -> int:
        """Nothing, once everything in `after` is done."""
        return self._add("barrier", (), "", after, name)

    def order(self, before: int, later: int) -> None:
        """Add an edge between nodes that exist; the only way to make a cycle, which `validate` finds."""
        for node in (before, later):
            self._check_id(node, "order")
        self.orders.append((before, later))

    def append(self, node: Node, after: Iterable[int]) -> int:
        """Add a node that was made and checked elsewhere; it gets a number and what it comes after."""
        earlier = tuple(dict.fromkeys(after))
        for first in earlier:
            self._check_id(first, f"{node.kind} {node.name!r}")
        self.nodes.append(replace(node, id=len(self.nodes), after=earlier))
        return len(self.nodes) - 1

    def label(self, node: int) -> str:
        """How messages name a node: `#3 all-reduce 'gradients'`."""
        found = self.nodes[node]
        return f"#{node} {found.op or found.kind}" + (f" {found.name!r}" if found.name else "")

    def predecessors(self) -> list[list[int]]:
        """For each node, what must be done before: edges and stream order, each once, rising."""
        before = [set(node.after) for node in self.nodes]
        for first, second in self.orders:
            before[second].add(first)
        last: dict[tuple[str, str], int] = {}
        for node in self.nodes:
            for device in dict.fromkeys(node.devices if node.stream else ()):
                lane = (device, node.stream)
                if lane in last:
                    before[node.id].add(last[lane])
                last[lane] = node.id
        return [sorted(nodes) for nodes in before]

    def _add(
        self,
        kind: Kind,
        devices: tuple[str, ...],
        stream: str,
        after: Iterable[int],
        name: str,
        nbytes: int = 0,
        **rest: object,
    ) -> int:
        if nbytes < 0 or nbytes != int(nbytes):
            raise WorkloadError(f"{kind} {name!r}: {nbytes} is not a number of bytes")
        fields: dict[str, object] = {"nbytes": int(nbytes), **rest}
        return self.append(Node(-1, kind, name, devices, stream, (), **fields), after)  # type: ignore[arg-type]

    def _check_id(self, node: int, what: str) -> None:
        if not 0 <= node < len(self.nodes):
            raise WorkloadError(f"{what}: there is no node {node} to come after")

    @staticmethod
    def _check_op(op: str, group: Sequence[str]) -> None:
        if op not in OPS:
            near = difflib.get_close_matches(op, OPS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; there is {', '.join(OPS)}"
            raise WorkloadError(f"{op!r} is no collective{hint}")
        if not group:
            raise WorkloadError(f"{op}: a collective needs at least one rank")


def check_devices(workload: Workload, known: Collection[str]) -> None:
    """Refuse devices that the cluster does not have.

    Raises:
        WorkloadError: with the nearest name.
    """
    seen: set[str] = set(known)
    for node in workload.nodes:
        for device in (*node.devices, *node.group):
            if device not in seen:
                near = difflib.get_close_matches(device, sorted(known), n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise WorkloadError(f"{workload.label(node.id)}: the cluster has no device {device!r}{hint}")


def check_acyclic(workload: Workload, before: Sequence[Sequence[int]]) -> None:
    """Refuse a graph in which something has to wait for itself.

    Raises:
        WorkloadError: names the nodes of one cycle, in order.
    """
    waiting = [len(earlier) for earlier in before]
    later: list[list[int]] = [[] for _ in before]
    for node, earlier in enumerate(before):
        for first in earlier:
            later[first].append(node)
    ready = [node for node, count in enumerate(waiting) if not count]
    for node in ready:
        for following in later[node]:
            waiting[following] -= 1
            if not waiting[following]:
                ready.append(following)
    if len(ready) < len(before):
        cycle = _cycle(before, waiting)
        raise WorkloadError("cycle: " + " -> ".join(workload.label(node) for node in cycle))


def _cycle(before: Sequence[Sequence[int]], waiting: Sequence[int]) -> list[int]:
    node = next(node for node, count in enumerate(waiting) if count)
    seen: dict[int, int] = {}
    path: list[int] = []
    while node not in seen:
        seen[node] = len(path)
        path.append(node)
        node = next(first for first in before[node] if waiting[first])
    return [node, *reversed(path[seen[node] :])]
