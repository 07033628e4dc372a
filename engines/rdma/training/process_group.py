"""`rdma` as a backend of `torch.distributed`: unmodified training code reduces its gradients by one-sided writes.

    import torch.distributed as dist
    from engines.rdma.training import process_group

    process_group.register()
    dist.init_process_group("rdma")                     # RANK, WORLD_SIZE, MASTER_ADDR as for any backend
    model = torch.nn.parallel.DistributedDataParallel(model)

Is this the natural door? For data-parallel training, yes: `DistributedDataParallel`, `ZeroRedundancyOptimizer` and
whatever else speaks to a process group run on it unchanged. But a process group is handed tensors that lie anywhere,
and with memory that only its own process has mapped nothing can be written there from outside. So each byte is copied
into registered memory and out of it again: two copies, counted in `ledger`, where the training job (`ranks`) has none,
because it says before the first step where gradients are to be produced. That is the paper's point: who sees messages
only cannot avoid the copies; who sees the graph can.

Collectives go round the ring (`ring`); `send` and `recv` have a slot for each pair of ranks that uses them, with the
static placement of `placement`. Operations are carried out when they are called: the work that is returned is done.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import (
    AllreduceOptions,
    BarrierOptions,
    BroadcastOptions,
    ReduceOp,
    ReduceOptions,
    ReduceScatterOptions,
    _create_work_from_future,
)
from torch.futures import Future

from engines.rdma.executor import drive
from engines.rdma.placement import ALIGN, PeerLost
from engines.rdma.session import boot_id
from engines.rdma.training import ring as ring_module
from engines.rdma.training.edges import Link, together
from engines.rdma.training.ring import Piece, Ring, chunk
from engines.rdma.training.stream import Stream
from harness.api import HarnessError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta

    from torch import Tensor

    from engines.rdma.copies import CopyLedger
    from engines.rdma.executor import Operation
    from engines.rdma.training.ring import Reduction, Schedule

NAME = "rdma"
STAGING = 32 << 20
"""Bytes that go round the ring at a time; the buckets of `DistributedDataParallel` have 25 MiB."""
PAUSE_SECONDS = 0.0005
REDUCTIONS: tuple[tuple[Any, Reduction], ...] = (
    (ReduceOp.SUM, "sum"),
    (ReduceOp.AVG, "sum"),
    (ReduceOp.PRODUCT, "product"),
    (ReduceOp.MIN, "min"),
    (ReduceOp.MAX, "max"),
)


def register() -> None:
    """Make the backend known to `torch.distributed`; may be called again."""
    dist.Backend.register_backend(NAME, _create, devices=["cpu"])


def _create(store: Any, rank: int, size: int, timeout: timedelta) -> RdmaProcessGroup:
    return RdmaProcessGroup(store, rank, size, timeout.total_seconds())


class _StoreBoard:
    """The store of a process group, looked at without waiting."""

    def __init__(self, store: Any) -> None:
        self._store = store

    def post(self, key: str, value: str) -> None:
        """Publish."""
        self._store.set(key, value)

    def find(self, key: str) -> str | None:
        """What was published, or None yet."""
        if self._store.check([key]):
            found: str = self._store.get(key).decode()
            return found
        time.sleep(PAUSE_SECONDS)
        return None


class RdmaProcessGroup(dist.ProcessGroup):
    """A process group over memory-transfer devices; every rank makes one, with the same store."""

    def __init__(self, store: Any, rank: int, size: int, timeout: float, *, provider: str = "auto") -> None:
        """Open a device and join the ring.

        Args:
            store: of `torch.distributed`, for addresses.
            rank: of this process in the group.
            size: how many there are.
            timeout: seconds without getting on after which a peer counts as lost.
            provider: `shm`, `verbs`, or `auto`: `shm` on one host, else `verbs`.

        Raises:
            ProviderUnavailable: there is no such device here.
            PeerLost: another rank did not come in time.
        """
        super().__init__(rank, size)
        self._rank, self._size, self._timeout = rank, size, timeout
        self._board = _StoreBoard(store)
        self._streams: dict[tuple[int, int], Stream] = {}
        # Messages to and from every rank, if need be.
        streams = 2 * (size - 1) * Stream.CAPACITY
        capacity = Ring.capacity(STAGING, size) + streams
        from engines.rdma.providers import open_device

        self.device = open_device(self._provider(provider), capacity)
        self._ring = Ring(self.device, rank=rank, ranks=size, nbytes=STAGING)
        self._drive(self._join())

    @property
    def ledger(self) -> CopyLedger:
        """Bytes that were copied, by site."""
        return self.device.ledger

    def _provider(self, wanted: str) -> str:
        if wanted != "auto":
            return wanted
        self._board.post(f"host{self._rank}", boot_id())
        hosts, deadline = set(), time.monotonic() + self._timeout
        for rank in range(self._size):
            while (host := self._board.find(f"host{rank}")) is None:
                if time.monotonic() > deadline:
                    raise PeerLost(f"rank {rank} did not join the process group within {self._timeout:g} s")
            hosts.add(host)
        return "shm" if len(hosts) == 1 else "verbs"

    def _join(self) -> Operation[None]:
        if self._size == 1:
            return
        ring, right, left = self._ring, (self._rank + 1) % self._size, (self._rank - 1) % self._size
        to_right = Link(self._board, f"ring {self._rank}-{right}", sending=True)
        to_left = Link(self._board, f"ring {left}-{self._rank}", sending=False)
        addresses = yield from together(
            to_right.swap("address", ring.right.address()), to_left.swap("address", ring.left.address())
        )
        ring.right.connect(addresses[0])
        ring.left.connect(addresses[1])
        offers = yield from together(to_right.swap("offer", ring.offer()), to_left.swap("offer", ring.offer()))
        ring.accept(right=offers[0], left=offers[1])

    def _drive(self, operation: Operation[Any], channel: Any = None) -> Any:
        alive = channel.alive if channel else self._ring.alive
        return drive(operation, self.device, alive=alive, timeout=self._timeout)

    # What torch.distributed asks of a group

    def rank(self) -> int:
        """Of this process."""
        return self._rank

    def size(self) -> int:
        """How many processes there are."""
        return self._size

    def getBackendName(self) -> str:
        """As in `init_process_group`."""
        return NAME

    def shutdown(self) -> None:
        """Close the device; peers that still wait for this rank learn that it is gone."""
        for stream in self._streams.values():
            stream.close()
        self._streams.clear()
        self._ring.close()
        self.device.close()

    # Collectives

    def allreduce(self, tensors: Sequence[Tensor], opts: Any = None) -> Any:
        """Reduce each tensor over all ranks, in place."""
        opts = opts or AllreduceOptions()
        for tensor in tensors:
            self._all_reduce(tensor, opts.reduceOp)
        return _done(list(tensors))

    allreduce_coalesced = allreduce

    def reduce(self, tensors: Sequence[Tensor], opts: Any = None) -> Any:
        """As an all-reduce whose result only the root is promised."""
        opts = opts or ReduceOptions()
        for tensor in tensors:
            result = tensor if opts.rootRank == self._rank else tensor.clone()
            self._all_reduce(result, opts.reduceOp)
        return _done(list(tensors))

    def broadcast(self, tensors: Sequence[Tensor], opts: Any = None) -> Any:
        """The root's tensors to all."""
        opts = opts or BroadcastOptions()
        ring, root = self._ring, opts.rootRank
        for tensor in tensors:
            with _flat(tensor) as whole:
                data = whole.view(torch.uint8)
                for part in data.split(STAGING):
                    size = part.numel()
                    staged = ring.items(torch.uint8, size)
                    if root == self._rank:
                        self._copy(staged, part, "into registered memory")
                    most = ring.most(torch.uint8)
                    schedule = ring_module.broadcast(self._rank, self._size, Piece(0, size), most, root)
                    self._run(schedule, torch.uint8, size)
                    if root != self._rank:
                        self._copy(part, staged, "out of registered memory")
        return _done(list(tensors))

    def allgather(self, outputs: Sequence[Sequence[Tensor]], inputs: Sequence[Tensor], opts: Any = None) -> Any:  # noqa: ARG002 - torch's signature
        """Every rank's tensor to all."""
        for gathered, mine in zip(outputs, inputs, strict=True):
            self._all_gather(gathered, mine)
        return _done([list(gathered) for gathered in outputs])

    def all_gather_single(self, output: Tensor, mine: Tensor, opts: Any = None) -> Any:  # noqa: ARG002 - torch's signature
        """Every rank's tensor, one after another in one tensor."""
        self._all_gather(output.view(-1).chunk(self._size), mine)
        return _done([output])

    _allgather_base = all_gather_single

    def reduce_scatter(self, outputs: Sequence[Tensor], inputs: Sequence[Sequence[Tensor]], opts: Any = None) -> Any:
        """Reduce as many tensors as there are ranks; each rank gets one of them."""
        opts = opts or ReduceScatterOptions()
        for output, parts in zip(outputs, inputs, strict=True):
            self._reduce_scatter(output, parts, opts.reduceOp)
        return _done(list(outputs))

    def reduce_scatter_single(self, output: Tensor, whole: Tensor, opts: Any = None) -> Any:
        """As `reduce_scatter`, with the tensors one after another in one."""
        opts = opts or ReduceScatterOptions()
        self._reduce_scatter(output, whole.view(-1).chunk(self._size), opts.reduceOp)
        return _done([output])

    _reduce_scatter_base = reduce_scatter_single

    def barrier(self, opts: Any = None) -> Any:
        """Wait until every rank has come here."""
        _ = opts or BarrierOptions()
        self._all_reduce(torch.zeros(1, dtype=torch.int32), ReduceOp.SUM)
        return _done([])

    # Messages

    def send(self, tensors: Sequence[Tensor], target: int, tag: int = 0) -> Any:  # noqa: ARG002 - torch's signature
        """Tensors to one rank; they are received in the order in which they were sent, whatever their tags."""
        stream = self._stream(self._rank, target)
        for tensor in tensors:
            content = tensor.detach().contiguous().view(-1).view(torch.uint8)
            self._drive(stream.move(content), stream.channel)
        return _done(list(tensors))

    def recv(self, tensors: Sequence[Tensor], source: int, tag: int = 0) -> Any:  # noqa: ARG002 - torch's signature
        """Tensors from one rank."""
        stream = self._stream(source, self._rank)
        for tensor in tensors:
            with _flat(tensor) as whole:
                self._drive(stream.move(whole.view(torch.uint8)), stream.channel)
        return _done(list(tensors))

    def recv_anysource(self, tensors: Sequence[Tensor], tag: int = 0) -> Any:  # noqa: ARG002 - torch's signature
        """Not offered.

        Raises:
            HarnessError: always.
        """
        raise HarnessError("backend 'rdma' receives from a rank that is named; name one with `src`")

    def _stream(self, source: int, target: int) -> Stream:
        stream = self._streams.get((source, target))
        if stream is None:
            link = Link(self._board, f"messages {source}-{target}", sending=source == self._rank)
            stream = self._streams[source, target] = Stream(self.device, link, f"message {source}-{target}")
            self._drive(stream.connect())
        return stream

    # Over the ring

    def _run(self, schedule: Schedule, dtype: torch.dtype, size: int, reduction: Reduction = "sum") -> None:
        self._drive(self._ring.run(schedule, dtype, size, reduction))

    def _all_reduce(self, tensor: Tensor, op: Any) -> None:
        reduction = _reduction(op)
        with _flat(tensor) as whole:
            for part in whole.split(self._most(whole)):
                staged = self._ring.items(part.dtype, part.numel())
                self._copy(staged, part, "into registered memory")
                self._drive(self._ring.all_reduce(part.dtype, part.numel(), reduction))
                self._copy(part, staged, "out of registered memory")
            if op == ReduceOp.AVG:
                whole.div_(self._size)

    def _all_gather(self, gathered: Sequence[Tensor], mine: Tensor) -> None:
        data = mine.detach().contiguous().view(-1).view(torch.uint8)
        with contextlib.ExitStack() as stack:
            targets = [stack.enter_context(_flat(tensor)).view(torch.uint8) for tensor in gathered]
            each = max(STAGING // self._size // ALIGN * ALIGN, 1)
            for start in range(0, data.numel(), each):
                parts = [target[start : start + each] for target in targets]
                length = parts[0].numel()
                staged = self._ring.items(torch.uint8, length * self._size)
                pieces = [Piece(rank * length, (rank + 1) * length) for rank in range(self._size)]
                self._copy(staged[length * self._rank :][:length], data[start : start + each], "into registered memory")
                most = self._ring.most(torch.uint8)
                schedule = ring_module.all_gather(self._rank, self._size, pieces, most)
                self._run(schedule, torch.uint8, length * self._size)
                for rank, part in enumerate(parts):
                    self._copy(part, staged[length * rank :][:length], "out of registered memory")

    def _reduce_scatter(self, output: Tensor, parts: Sequence[Tensor], op: Any) -> None:
        reduction, dtype = _reduction(op), output.dtype
        flat = [part.detach().contiguous().view(-1) for part in parts]
        each = max(self._most(output) // self._size, 1)
        with _flat(output) as whole:
            for start in range(0, whole.numel(), each):
                target = whole[start : start + each]
                length = target.numel()
                staged = self._ring.items(dtype, length * self._size)
                for rank, part in enumerate(flat):
                    self._copy(staged[length * rank :][:length], part[start : start + each], "into registered memory")
                places = [chunk(rank, length * self._size, self._size) for rank in range(self._size)]
                most = self._ring.most(dtype)
                schedule = ring_module.reduce_scatter(self._rank, self._size, places, most)
                self._run(schedule, dtype, length * self._size, reduction)
                self._copy(target, staged[length * self._rank :][:length], "out of registered memory")
            if op == ReduceOp.AVG:
                whole.div_(self._size)

    def _most(self, tensor: Tensor) -> int:
        return STAGING // tensor.dtype.itemsize

    def _copy(self, target: Tensor, source: Tensor, site: str) -> None:
        target.copy_(source)
        self.ledger.count(f"process group: {site}", target.nbytes)


def _reduction(op: Any) -> Reduction:
    for known, name in REDUCTIONS:
        if op == known:
            return name
    raise HarnessError(f"backend 'rdma' reduces by sum, average, product, minimum or maximum, not by {op}")


@contextlib.contextmanager
def _flat(tensor: Tensor) -> Any:
    """The elements in one dimension; what is written there is in the tensor afterwards."""
    tensor = tensor.detach()
    if tensor.is_contiguous():
        yield tensor.view(-1)
        return
    whole = tensor.contiguous().view(-1)
    yield whole
    tensor.copy_(whole.view(tensor.shape))


def _done(result: Any) -> Any:
    future: Future[Any] = Future()
    future.set_result(result)
    return _create_work_from_future(future)
