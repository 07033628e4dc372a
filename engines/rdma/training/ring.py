"""Ring all-reduce by one-sided writes into the right neighbour's memory.

A vector of `size` items is cut into as many chunks as there are ranks (Patarasuk and Yuan 2009, "Bandwidth optimal
all-reduce algorithms for clusters of workstations"). In the *reduce-scatter* each rank passes partial sums to its right
neighbour, which adds its own; after `ranks - 1` steps each rank holds one chunk that is whole. In the *all-gather* the
whole chunks go round once more. Every rank sends and receives ``2 (ranks - 1) / ranks`` of the vector.

Chunks are cut into *pieces*, and what a rank sends is, after its own chunk, just what it received, piece by piece: so a
step does not wait for the one before, and adding overlaps writing. A partial sum lands in the neighbour's *scratch*
memory (there is another value in its place in the vector), a whole chunk in the vector itself, from where nobody has to
copy it.

Nothing is overwritten that is still needed: an operation begins with a word to the left neighbour, "my vector is ready
for operation k", which also says that whatever operation k - 1 left there was used; the neighbour writes nothing
before. Within an operation no place is written twice.

How a piece is announced: by a counter in the neighbour's memory, written behind it (writes of a channel are placed in
the order posted); where a device places bytes in any order, by an immediate that comes with the piece.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from engines.rdma.device import WORD, Access, ChannelOptions, Descriptor, Signal
from engines.rdma.events import Events
from engines.rdma.placement import ALIGN, choose_signal, read_offer, require

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engines.rdma.device import Device
    from engines.rdma.executor import Operation

PIECE = 1 << 20
"""Bytes announced together: few enough that adding overlaps writing, enough that announcing costs little."""

Reduction = Literal["sum", "product", "min", "max"]

REDUCTIONS = {"sum": torch.add, "product": torch.mul, "min": torch.minimum, "max": torch.maximum}


@dataclass(frozen=True)
class Piece:
    """Items `[start, end)` of the vector."""

    start: int
    end: int


@dataclass(frozen=True)
class Arrival:
    """A piece that comes from the left neighbour, and what is done with it."""

    piece: Piece
    reduce: bool
    """It is a partial sum in scratch memory, to be added to what the vector holds; else it is in its place already."""
    forward: bool
    """Pass the result on to the right neighbour."""
    forward_whole: bool
    """What is passed on needs no further addition, and so belongs into the neighbour's vector."""


@dataclass(frozen=True)
class Schedule:
    """What one rank does in one operation: sends of its own, then arrivals in order."""

    own: tuple[Piece, ...]
    own_whole: bool
    """Whether the own pieces go into the neighbour's vector, not its scratch memory."""
    arrivals: tuple[Arrival, ...]

    @property
    def sends(self) -> int:
        """Pieces sent in all."""
        return len(self.own) + sum(arrival.forward for arrival in self.arrivals)


def chunk(number: int, size: int, ranks: int) -> Piece:
    """Chunk `number` of a vector of `size` items: sizes differ by one item at most."""
    return Piece(number * size // ranks, (number + 1) * size // ranks)


def cut(whole: Piece, most: int) -> tuple[Piece, ...]:
    """Pieces of at most `most` items; none if there is nothing."""
    return tuple(Piece(start, min(start + most, whole.end)) for start in range(whole.start, whole.end, most))


def all_reduce(rank: int, ranks: int, chunks: Sequence[Piece], most: int) -> Schedule:
    """Reduce-scatter, then all-gather."""
    arrivals: list[Arrival] = []
    steps = 2 * (ranks - 1)
    for step in range(steps):
        reducing = step < ranks - 1
        place = chunks[(rank - step - 1) % ranks]
        forward, whole = step + 1 < steps, step + 1 >= ranks - 1
        arrivals += (Arrival(piece, reducing, forward, whole) for piece in cut(place, most))
    return Schedule(cut(chunks[rank], most) if ranks > 1 else (), False, tuple(arrivals))


def reduce_scatter(rank: int, ranks: int, chunks: Sequence[Piece], most: int) -> Schedule:
    """Each rank ends with its own chunk whole; the others hold partial sums."""
    arrivals: list[Arrival] = []
    for step in range(ranks - 1):
        place = chunks[(rank - step - 2) % ranks]
        arrivals += (Arrival(piece, True, step + 2 < ranks, False) for piece in cut(place, most))
    return Schedule(cut(chunks[(rank - 1) % ranks], most) if ranks > 1 else (), False, tuple(arrivals))


def all_gather(rank: int, ranks: int, chunks: Sequence[Piece], most: int) -> Schedule:
    """Each rank starts with its own chunk, and ends with all."""
    arrivals: list[Arrival] = []
    for step in range(ranks - 1):
        place = chunks[(rank - step - 1) % ranks]
        arrivals += (Arrival(piece, False, step + 2 < ranks, True) for piece in cut(place, most))
    return Schedule(cut(chunks[rank], most) if ranks > 1 else (), True, tuple(arrivals))


def broadcast(rank: int, ranks: int, whole: Piece, most: int, root: int) -> Schedule:
    """The root's vector goes round the ring and stops at its left neighbour."""
    pieces = cut(whole, most)
    if ranks == 1:
        return Schedule((), True, ())
    if rank == root:
        return Schedule(pieces, True, ())
    last = (rank + 1) % ranks == root
    return Schedule((), True, tuple(Arrival(piece, False, not last, True) for piece in pieces))


class Ring:
    """One rank's memory and channels in a ring; operations are polling-asynchronous.

    The vector lies in `vector.view`, where its producers put it; `nbytes` of it can take part in an operation.
    """

    def __init__(
        self, device: Device, *, rank: int, ranks: int, nbytes: int, signal: str = "auto", piece: int = PIECE
    ) -> None:
        """Register the vector, the scratch memory and the counters, and make both channels.

        Args:
            device: of this rank.
            rank: place in the ring; the right neighbour is the next.
            ranks: how many there are.
            nbytes: of the longest vector.
            signal: how pieces are announced: `tail` (a counter), `imm`, or `auto`.
            piece: bytes of a piece, a multiple of 64.
        """
        self.device, self.rank, self.ranks = device, rank, ranks
        self._piece = piece
        self._signal = choose_signal(signal, device.traits)
        # Every chunk may end with a piece that is not full, at both passes.
        self._most_sends = 2 * (-(-nbytes // piece) + ranks)
        open_to_left = Access.LOCAL_WRITE | Access.REMOTE_WRITE
        self.vector = device.allocate(nbytes, access=open_to_left, align=ALIGN)
        self._scratch = device.allocate(nbytes, access=open_to_left, align=ALIGN)
        self._arrived_word = device.allocate(WORD, access=open_to_left)
        self._ready_word = device.allocate(WORD, access=open_to_left)
        self._begun_word = device.allocate(WORD, access=Access.LOCAL_WRITE)
        self._counts = device.allocate(self._most_sends * WORD, access=Access.LOCAL_WRITE)
        self._arrived = self._arrived_word.view.cast("Q")
        self._ready = self._ready_word.view.cast("Q")
        self._begun = self._begun_word.view.cast("Q")
        self._count_words = self._counts.view.cast("Q")
        depth = ChannelOptions(depth=max(128, min(1024, 2 * self._most_sends)))
        self.left, self.right = device.channel(depth), device.channel(depth)
        self._from_left = Events(self.left, f"ring of rank {rank}")
        self._to_right = Events(self.right, f"ring of rank {rank}")
        self._sent = self._seen = self._immediates = 0
        self._targets: dict[str, Descriptor] = {}

    @staticmethod
    def capacity(nbytes: int, ranks: int, piece: int = PIECE) -> int:
        """Bytes of arena that a ring needs."""
        return 2 * (nbytes + ALIGN) + 6 * ALIGN + 2 * (-(-nbytes // piece) + ranks) * WORD

    def offer(self) -> str:
        """What both neighbours must know to write here (JSON)."""
        regions = {
            "vector": self.vector, "scratch": self._scratch, "arrived": self._arrived_word, "ready": self._ready_word
        }  # fmt: skip
        return json.dumps({name: self.device.describe(region).to_json() for name, region in regions.items()})

    def accept(self, *, left: str, right: str) -> None:
        """Take in the neighbours' offers.

        Raises:
            InvalidDescriptor: one is malformed, or its memory too small.
        """
        longest = self.vector.nbytes
        needs = {"vector": longest, "scratch": longest, "arrived": WORD, "ready": WORD}
        for offer, wanted in ((right, ("vector", "scratch", "arrived")), (left, ("ready",))):
            found = read_offer(offer, needs)
            for name in wanted:
                descriptor = found[name]
                assert isinstance(descriptor, Descriptor)
                self._targets[name] = require(descriptor, nbytes=needs[name], access=Access.REMOTE_WRITE, what=name)

    def alive(self) -> bool:
        """Whether both neighbours are still there."""
        return self.ranks == 1 or (self.left.alive() and self.right.alive())

    def items(self, dtype: torch.dtype, size: int) -> torch.Tensor:
        """The first `size` items of the vector."""
        return torch.frombuffer(self.vector.view, dtype=dtype, count=size)

    def most(self, dtype: torch.dtype) -> int:
        """Items in a piece."""
        return self._piece // dtype.itemsize

    def all_reduce(self, dtype: torch.dtype, size: int, reduction: Reduction = "sum") -> Operation[None]:
        """Reduce the first `size` items of all ranks' vectors; each ends with the same bytes."""
        chunks = [chunk(number, size, self.ranks) for number in range(self.ranks)]
        yield from self.run(all_reduce(self.rank, self.ranks, chunks, self.most(dtype)), dtype, size, reduction)

    def run(self, schedule: Schedule, dtype: torch.dtype, size: int, reduction: Reduction = "sum") -> Operation[None]:
        """Carry out what this rank has to do in one operation over `size` items.

        Raises:
            PeerLost: the right neighbour did not answer.
            TransferFailed: a write failed.
        """
        if not size or self.ranks == 1:
            return
        vector = torch.frombuffer(self.vector.view, dtype=dtype, count=size)
        scratch = torch.frombuffer(self._scratch.view, dtype=dtype, count=size)
        combine, width, left = REDUCTIONS[reduction], dtype.itemsize, schedule.sends
        index = 0
        yield from self._begin()
        for piece in schedule.own:
            left -= 1
            self._send(piece, width, index, whole=schedule.own_whole, last=not left)
            index += 1
        for arrival in schedule.arrivals:
            yield from self._wait()
            piece = arrival.piece
            if arrival.reduce:
                mine = vector[piece.start : piece.end]
                combine(mine, scratch[piece.start : piece.end], out=mine)
            if arrival.forward:
                left -= 1
                self._send(piece, width, index, whole=arrival.forward_whole, last=not left)
                index += 1
        # The source of a write may be changed when it has ended.
        if schedule.sends:
            while not self._to_right.finished(self._last):
                yield f"ring of rank {self.rank}: end of its last write"

    def _begin(self) -> Operation[None]:
        """Tell the left neighbour that it may write, and wait for the right one's word."""
        self._begun[0] += 1
        self.left.write(self._begun_word, self._targets["ready"], offset=0, at=0, nbytes=WORD, signaled=False)
        while self._ready[0] < self._begun[0]:
            self._from_left.check()
            yield f"ring of rank {self.rank}: the right neighbour"

    def _send(self, piece: Piece, width: int, index: int, *, whole: bool, last: bool) -> None:
        offset, nbytes = piece.start * width, (piece.end - piece.start) * width
        target = self._targets["vector" if whole else "scratch"]
        self._sent += 1
        by_counter = self._signal is not Signal.IMM
        imm = None if by_counter else self._sent % 2**32
        ticket = self.right.write(
            self.vector, target, offset=offset, at=offset, nbytes=nbytes, imm=imm, signaled=last and not by_counter
        )
        if by_counter:
            # Each count has a word of its own: an adapter reads it when it gets to the write, not now.
            self._count_words[index] = self._sent
            ticket = self.right.write(
                self._counts, self._targets["arrived"], offset=index * WORD, at=0, nbytes=WORD, signaled=last
            )
        if last:
            self._last = self._to_right.expect(ticket)
        self._to_right.check()

    def _wait(self) -> Operation[None]:
        """Until one more piece has come."""
        self._seen += 1
        while self._arrivals() < self._seen:
            self._to_right.check()
            yield f"ring of rank {self.rank}: piece {self._seen} of the left neighbour"

    def _arrivals(self) -> int:
        if self._signal is not Signal.IMM:
            return self._arrived[0]
        while self._immediates < self._seen and self.left.arrived() is not None:
            self._immediates += 1
        return self._immediates

    def close(self) -> None:
        """Let go of views into the memory, and close both channels."""
        for words in (self._arrived, self._ready, self._begun, self._count_words):
            words.release()
        self.left.close()
        self.right.close()


def join(rings: Sequence[Ring]) -> None:
    """Connect the rings of ranks that live in one process."""
    for ring in rings:
        right = rings[(ring.rank + 1) % ring.ranks]
        mine, theirs = ring.right.address(), right.left.address()
        ring.right.connect(theirs)
        right.left.connect(mine)
    for ring in rings:
        left, right = (rings[(ring.rank + way) % ring.ranks] for way in (-1, 1))
        ring.accept(left=left.offer(), right=right.offer())
