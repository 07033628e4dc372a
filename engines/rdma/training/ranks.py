"""Putting a rank together: its model, its edges, its memory.

Everything here is a polling-asynchronous operation over a `Board`, so that ranks may be processes of several hosts, or
take turns in one process over simulated adapters.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from engines.rdma import transports
from engines.rdma.copies import CopyLedger
from engines.rdma.production import private_sources
from engines.rdma.training import models
from engines.rdma.training.data_parallel import PeerWorker, offsets
from engines.rdma.training.edges import (
    Background,
    Link,
    Live,
    ThreadedIncoming,
    ThreadedOutgoing,
    Waker,
    open_incoming,
    open_outgoing,
    registered,
    together,
)
from engines.rdma.training.parameter_server import Server, Worker
from engines.rdma.training.replica import Replica
from engines.rdma.training.ring import Ring
from engines.rdma.transports import ON_DEVICE, Setting
from engines.rdma.transports.base import Sources

if TYPE_CHECKING:
    from collections.abc import Callable

    from engines.rdma.device import Device
    from engines.rdma.executor import Operation
    from engines.rdma.session import Session
    from engines.rdma.tensors import Payload
    from engines.rdma.training.data import Batch
    from engines.rdma.training.edges import Board, Incoming, Outgoing
    from engines.rdma.training.plan import Job

PRODUCED_IN_PLACE = ("zero-copy", "request-driven")
"""Transports that send from registered memory in which tensors were produced."""
FIXED_SOURCES = ("tcp",)
"""Transports that are told once where tensors lie, and never again."""

Rank = Server | Worker | PeerWorker


@dataclass
class Surroundings:
    """What a rank is given."""

    rank: int
    board: Board
    device: Device | None = None
    """None where the transport needs none."""
    session: Callable[[int, int], Session] | None = None
    """Opens the connection of an edge (source, target), for transports that block; real processes only."""
    reduce: Callable[[torch.Tensor], None] | None = None
    """Sums a tensor over the workers, blocking (gloo)."""
    waker: Waker = field(default_factory=Waker)
    neighbours: list[tuple[int, Callable[[], bool]]] = field(default_factory=list)
    """Ranks at the other ends, and whether they live; filled while the rank is put together."""
    closing: list[Callable[[], None]] = field(default_factory=list)
    """What must be given back, the latest first."""

    def __post_init__(self) -> None:
        self.ledger = self.device.ledger if self.device else CopyLedger()
        """Where this rank counts copies; transports that have no device keep their own."""
        self.ledgers = [self.ledger]

    def copied(self) -> int:
        """Bytes that this rank has copied in all."""
        return sum(ledger.nbytes for ledger in self.ledgers)

    @property
    def clock(self) -> Callable[[], float]:
        """Seconds, in the time in which transfers take place."""
        return (self.device or self.waker).clock

    def alive(self) -> bool:
        """Whether every neighbour lives."""
        return all(alive() for _, alive in self.neighbours)

    def gone(self) -> list[int]:
        """Neighbours that do not."""
        return sorted({rank for rank, alive in self.neighbours if not alive()})

    def close(self) -> None:
        """Give everything back."""
        while self.closing:
            self.closing.pop()()


def capacity(job: Job, transport: str, payload: Payload, rank: int) -> int:
    """Bytes of arena that a rank needs; 0 if the transport has no use for a device."""
    if not job.has_server:
        nbytes = offsets(tensor.nbytes for tensor in payload.tensors)[1]
        return Ring.capacity(nbytes, job.training.workers) if transport in ("zero-copy", "copy") else 0
    setting = Setting((payload,), signal=job.signal)
    source, target = (transports.capacity([transport], setting, rank=side) for side in (0, 1))
    return (source + target) * (job.training.workers if rank == 0 else 1)


def put_together(job: Job, transport: str, seed: int, around: Surroundings) -> Operation[Rank]:
    """A rank, connected with the ranks that it shares edges with."""
    replica = Replica(job.training.model, job.training.size, seed, around.ledger)
    if not job.has_server:
        return (yield from _peer(job, transport, seed, replica, around))
    if around.rank == 0:
        return (yield from _server(job, transport, replica, around))
    return (yield from _worker(job, transport, seed, replica, around))


def batches(job: Job, rank: int, seed: int) -> Callable[[int], Batch]:
    """A worker's share of the batch of a step."""
    task, place = models.variant(job.training.model, job.training.size).task, job.workers.index(rank)
    return lambda number: task.batch(number, job.training.samples, seed).share(place, job.training.workers)


def _optimizer(job: Job, replica: Replica) -> torch.optim.Optimizer:
    rate, momentum = job.training.learning_rate, job.training.momentum
    return torch.optim.SGD(replica.parameters, lr=rate, momentum=momentum)


def _server(job: Job, transport: str, replica: Replica, around: Surroundings) -> Operation[Server]:
    payload = replica.payload("parameters")
    if transport in PRODUCED_IN_PLACE:
        assert around.device is not None
        sources = registered(around.device, payload, job.signal)
        replica.move_into(sources.views)
    else:
        sources = Sources([replica.parameter_bytes(index) for index in range(len(replica.parameters))])
    outgoing, incoming = [], []
    for worker in job.workers:
        outgoing.append((yield from _outgoing(job, transport, payload, sources, worker, around)))
        gradients = replica.payload(f"gradients of rank {worker}")
        incoming.append((yield from _incoming(job, transport, gradients, worker, around)))
    optimizer = _optimizer(job, replica)
    return Server(replica, optimizer, parameters=outgoing, gradients=incoming, clock=around.clock)


def _worker(job: Job, transport: str, seed: int, replica: Replica, around: Surroundings) -> Operation[Worker]:
    payload = replica.payload(f"gradients of rank {around.rank}")
    incoming = yield from _incoming(job, transport, replica.payload("parameters"), 0, around)
    if transport in PRODUCED_IN_PLACE:
        assert around.device is not None
        sources = registered(around.device, payload, job.signal)
        replica.produce_in({name: place.data for name, place in zip(replica.names, sources.views, strict=True)})
    elif transport in FIXED_SOURCES:
        sources = private_sources(payload)
        replica.copy_to({name: place.data for name, place in zip(replica.names, sources.views, strict=True)})
    else:
        sources = Live(len(replica.parameters), replica.gradient_bytes)
    outgoing = yield from _outgoing(job, transport, payload, sources, 0, around)
    share = batches(job, around.rank, seed)
    return Worker(replica, share, parameters=incoming, gradients=outgoing, clock=around.clock)


def _outgoing(
    job: Job, transport: str, payload: Payload, sources: Sources, target: int, around: Surroundings
) -> Operation[Outgoing]:
    setting = Setting((payload,), signal=job.signal)
    edge: Outgoing
    if transport in ON_DEVICE:
        assert around.device is not None
        link = Link(around.board, f"{transport}/{around.rank}-{target}", sending=True)
        edge = yield from open_outgoing(transport, around.device, setting, payload, sources, link)
    else:
        assert around.session is not None
        session = around.session(around.rank, target)
        sender = transports.open_sender(transport, session, setting, None)
        around.ledgers.append(sender.ledger)
        sender.prepare(payload, sources)
        edge = ThreadedOutgoing(sender, session, around.waker, f"{payload.name} to rank {target}")
    around.neighbours.append((target, edge.alive))
    around.closing.append(edge.close)
    return edge


def _incoming(job: Job, transport: str, payload: Payload, source: int, around: Surroundings) -> Operation[Incoming]:
    setting = Setting((payload,), signal=job.signal)
    edge: Incoming
    if transport in ON_DEVICE:
        assert around.device is not None
        link = Link(around.board, f"{transport}/{source}-{around.rank}", sending=False)
        edge = yield from open_incoming(transport, around.device, setting, payload, link)
    else:
        assert around.session is not None
        session = around.session(source, around.rank)
        receiver = transports.open_receiver(transport, session, setting, None)
        around.ledgers.append(receiver.ledger)
        receiver.prepare(payload)
        edge = ThreadedIncoming(receiver, session, around.waker, f"{payload.name} from rank {source}")
    around.neighbours.append((source, edge.alive))
    around.closing.append(edge.close)
    return edge


def _peer(job: Job, transport: str, seed: int, replica: Replica, around: Surroundings) -> Operation[PeerWorker]:
    starts, nbytes = offsets(4 * parameter.numel() for parameter in replica.parameters)
    reduce: Callable[[int], Operation[None]]
    if transport == "gloo":
        vector = torch.zeros(nbytes // 4)
        memory = memoryview(vector.numpy()).cast("B")
        reduce = _blocking_reduce(around, vector)
    else:
        assert around.device is not None
        ring = Ring(
            around.device, rank=around.rank, ranks=job.training.workers, nbytes=nbytes, signal=_ring_signal(job)
        )
        around.closing.append(ring.close)
        yield from _join(transport, ring, around)
        memory, vector = ring.vector.view, ring.items(torch.float32, nbytes // 4)

        def reduce(_number: int) -> Operation[None]:
            return ring.all_reduce(torch.float32, nbytes // 4)

    places = {
        name: memory[start : start + 4 * parameter.numel()]
        for name, start, parameter in zip(replica.names, starts, replica.parameters, strict=True)
    }
    if transport == "zero-copy":
        replica.produce_in(places)
    else:
        replica.copy_to(places)
    return PeerWorker(
        replica,
        _optimizer(job, replica),
        batches(job, around.rank, seed),
        vector=vector,
        reduce=reduce,
        workers=job.training.workers,
        clock=around.clock,
    )


def _ring_signal(job: Job) -> str:
    # The ring has no check sums of its own; its counter is a write behind the data, safe where `tail` is.
    return "auto" if job.signal == "debug" else job.signal


def _join(transport: str, ring: Ring, around: Surroundings) -> Operation[None]:
    """Connect a ring with both neighbours' (which are one rank if there are two)."""
    if ring.ranks == 1:
        return
    right, left = ((around.rank + way) % ring.ranks for way in (1, -1))
    to_right = Link(around.board, f"{transport}/ring {around.rank}-{right}", sending=True)
    to_left = Link(around.board, f"{transport}/ring {left}-{around.rank}", sending=False)
    # Both publish before either waits.
    addresses = together(to_right.swap("address", ring.right.address()), to_left.swap("address", ring.left.address()))
    for channel, address in zip((ring.right, ring.left), (yield from addresses), strict=True):
        channel.connect(address)
    offers = together(to_right.swap("offer", ring.offer()), to_left.swap("offer", ring.offer()))
    of_right, of_left = yield from offers
    ring.accept(left=of_left, right=of_right)
    around.neighbours += [(right, ring.right.alive), (left, ring.left.alive)]


def _blocking_reduce(around: Surroundings, vector: torch.Tensor) -> Callable[[int], Operation[None]]:
    assert around.reduce is not None
    action, background = around.reduce, Background(around.waker)
    around.closing.append(background.close)
    return lambda number: background.operation(lambda _: action(vector), number, "all-reduce")
