"""One rank of a program in a `torch.distributed` process group: gloo here, NCCL on GPUs.

Every communication is begun where its instruction stands and waited for where its value is first read, so that what
lies between them overlaps; neighbouring all-reduces go together (`buckets`). What arrives is put together in the order
of the group, as in `lockstep`: on gloo a reduce-scatter is an all-to-all whose pieces each rank sums itself, which
moves what a ring would.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from engines.superscaler.program import Collective, Exchange, Move
from engines.superscaler.redistribution.steps import ring
from engines.superscaler.runtime.buckets import buckets
from engines.superscaler.runtime.communication import exchanged, sizes, slices
from engines.superscaler.runtime.interpret import Held, initial, named
from engines.superscaler.runtime.interpreter import Rank
from engines.superscaler.runtime.optimizer import Optimizer
from engines.superscaler.runtime.routine import combine
from engines.superscaler.runtime.traffic import elements

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from torch import Tensor, nn

    from engines.superscaler.program import Piece, Program

REDUCE = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX}


class Arriving:
    """A value on its way: what has to end first, and how it is put together then."""

    def __init__(self, works: list[dist.Work], make: Callable[[], Tensor]) -> None:
        # Of all that arrive together: a work is to be waited for once.
        self._works, self._make = works, make

    def wait(self) -> Tensor:
        """The value, once it is there."""
        while self._works:
            self._works.pop().wait()
        return self._make()


class Groups:
    """Process groups by their members; each is made once, in one order on all ranks."""

    def __init__(self) -> None:
        self._made: dict[tuple[int, ...], dist.ProcessGroup] = {}

    def prepare(self, program: Program) -> None:
        """Make those that a program needs: every process of the default group, a member or not, must come here."""
        for members in needed(program):
            if members not in self._made:
                everyone = members == tuple(range(dist.get_world_size()))
                self._made[members] = dist.group.WORLD if everyone else dist.new_group(list(members))

    def __getitem__(self, members: tuple[int, ...]) -> dist.ProcessGroup:
        return self._made[tuple(sorted(members))]


def needed(program: Program) -> list[tuple[int, ...]]:
    """Members, rising, of every group that has a collective; sorted."""
    found = {
        tuple(sorted(group))
        for section in program.sections
        for action in section.actions
        if isinstance(action, Move) and action.kind in ("all-reduce", "reduce-scatter", "all-gather", "all-to-all")
        for group in action.mesh.groups(action.axes)
    }
    return sorted(found)


class Process:
    """Drives the one rank that this process is."""

    def __init__(self, rank: Rank, groups: Groups) -> None:
        self._rank, self._groups = rank, groups
        self._buckets = buckets(rank.instructions)
        self._native = rank.device.type == "cuda"
        self._sending: list[tuple[dist.Work, object]] = []
        """With what must not be freed before it has ended."""
        self.sent = self.received = 0
        """Bytes, of the tensors that were communicated; collectives as rings do them."""

    def step(self, batch: Sequence[Mapping[str, Tensor]]) -> None:
        """One step of the rank."""
        for instruction in self._rank.step(batch):
            if isinstance(instruction, Exchange):
                self._exchange(instruction)
            elif self._rank.at not in self._buckets:
                self._collective(instruction)
            elif self._buckets[self._rank.at]:
                self._all_reduce(self._buckets[self._rank.at])
        for work, _ in self._sending:
            work.wait()
        self._sending.clear()

    # --- collectives -----------------------------------------------------------------------------------------------

    def _collective(self, called: Collective) -> None:
        if called.kind == "all-reduce":
            self._all_reduce((called,))
            return
        source = self._source(called)
        n = len(called.group)
        group = self._groups[called.group]
        match called.kind:
            case "all-gather":
                arriving = self._all_gather(source, called, group)
            case "reduce-scatter":
                arriving = self._reduce_scatter(source, called, group)
            case _:
                pieces, works = self._all_to_all(source.chunk(n, called.split), called, group)
                arriving = Arriving(works, lambda: torch.cat(pieces, called.dim))
        self._rank.values[called.target] = arriving

    def _source(self, called: Collective) -> Tensor:
        """What a collective is given, its bytes counted."""
        source = self._rank.read(called.source)
        moved = ring(called.kind, len(called.group), source.numel()) * source.element_size()
        self.sent += moved
        self.received += moved
        return source

    def _all_reduce(self, bucket: Sequence[Collective]) -> None:
        """All of a bucket as one message."""
        sources = [self._source(called) for called in bucket]
        lengths = [source.numel() for source in sources]
        together = sources[0].new_empty(sum(lengths))
        parts = [part.view(source.shape) for part, source in zip(together.split(lengths), sources, strict=True)]
        for part, source in zip(parts, sources, strict=True):
            part.copy_(source)
        group = self._groups[bucket[0].group]
        works = [dist.all_reduce(together, REDUCE[bucket[0].reduction], group, async_op=True)]
        for called, part in zip(bucket, parts, strict=True):
            self._rank.values[called.target] = Arriving(works, lambda part=part: part)

    def _all_gather(self, source: Tensor, called: Collective, group: dist.ProcessGroup) -> Arriving:
        source = source.contiguous()
        parts = [torch.empty_like(source) for _ in called.group]
        work = dist.all_gather(_in_rank_order(parts, called.group), source, group, async_op=True)
        self._sending.append((work, source))
        return Arriving([work], lambda: torch.cat(parts, called.dim))

    def _reduce_scatter(self, source: Tensor, called: Collective, group: dist.ProcessGroup) -> Arriving:
        chunks = source.chunk(len(called.group), called.dim)
        if self._native:
            into = torch.empty_like(chunks[0], memory_format=torch.contiguous_format)
            given = [chunk.contiguous() for chunk in _in_rank_order(chunks, called.group)]
            work = dist.reduce_scatter(into, given, REDUCE[called.reduction], group, async_op=True)
            return Arriving([work], lambda: into)
        pieces, works = self._all_to_all(chunks, called, group)
        return Arriving(works, lambda: combine(pieces, called.reduction))

    def _all_to_all(
        self, chunks: Sequence[Tensor], called: Collective, group: dist.ProcessGroup
    ) -> tuple[list[Tensor], list[dist.Work]]:
        """Chunk i of every member at its i-th member, in the order of the group."""
        given = torch.stack(_in_rank_order(chunks, called.group))
        taken = torch.empty_like(given)
        work = dist.all_to_all_single(taken, given, group=group, async_op=True)
        places = {member: place for place, member in enumerate(sorted(called.group))}
        self._sending.append((work, given))
        return [taken[places[member]] for member in called.group], [work]

    # --- exchanges -------------------------------------------------------------------------------------------------

    def _exchange(self, exchange: Exchange) -> None:
        own = None if exchange.source is None else self._rank.read(exchange.source)
        dtype = self._rank.dtype if own is None else own.dtype
        outgoing = [
            (peer, _packed([own[slices(piece.box)] for piece in pieces])) for peer, pieces in _by_peer(exchange.sends)
        ]
        incoming = [
            (peer, pieces, torch.empty(elements(pieces), dtype=dtype, device=self._rank.device))
            for peer, pieces in _by_peer(exchange.receives)
        ]
        posts = [dist.P2POp(dist.isend, message, peer, tag=exchange.tag) for peer, message in outgoing]
        posts += [dist.P2POp(dist.irecv, message, peer, tag=exchange.tag) for peer, _, message in incoming]
        self.sent += sum(message.nbytes for _, message in outgoing)
        self.received += sum(message.nbytes for _, _, message in incoming)
        works = dist.batch_isend_irecv(posts) if posts else []
        # NCCL has one work for the whole batch; gloo one for every post, sends first, each to be waited for once.
        sending, awaited = (works, works) if self._native else (works[: len(outgoing)], works[len(outgoing) :])
        self._sending += [(work, outgoing) for work in sending]
        if exchange.target is None:
            return

        def put_together() -> Tensor:
            arrived = {peer: _unpacked(message, pieces) for peer, pieces, message in incoming}
            return exchanged(self._rank, exchange, own, arrived)

        self._rank.values[exchange.target] = Arriving(awaited, put_together)


def _by_peer(pieces: Iterable[Piece]) -> list[tuple[int, list[Piece]]]:
    """Pieces of each peer, in their order: all that goes to one peer is one message."""
    ordered = sorted(pieces, key=lambda piece: piece.peer)
    return [(peer, list(of_peer)) for peer, of_peer in itertools.groupby(ordered, lambda piece: piece.peer)]


def _packed(pieces: Sequence[Tensor]) -> Tensor:
    return torch.cat([piece.reshape(-1) for piece in pieces]) if len(pieces) > 1 else pieces[0].reshape(-1)


def _unpacked(message: Tensor, pieces: Sequence[Piece]) -> list[Tensor]:
    parts = message.split([elements([piece]) for piece in pieces])
    return [part.view(sizes(piece)) for part, piece in zip(parts, pieces, strict=True)]


def _in_rank_order(items: Sequence[Tensor], group: Sequence[int]) -> list[Tensor]:
    """What is in the order of a group, in that of its ranks, which is torch's."""
    return [item for _, item in sorted(zip(group, items, strict=True), key=lambda pair: pair[0])]


def run(
    program: Program,
    module: nn.Module,
    batches: Sequence[Sequence[tuple[Tensor, ...]]],
    *,
    groups: Groups | None = None,
    optimizer: Optimizer | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> Held:
    """Train for some steps as the rank that this process has in the default process group.

    Args:
        program: What to do; its devices are the first ranks of the process group.
        module: Whose parameters and buffers to start from, the same on all ranks.
        batches: For every step, for every micro-batch of the plan, the inputs of the graph: whole, on all ranks.
        groups: To use again what other programs made.
        optimizer: Adam by default.
        dtype: To compute in.
        device: Of this rank.
        seed: Of random masks.

    Returns:
        This rank's parts; `interpret.outcome` puts all of them together.
    """
    from engines.superscaler.projection import project

    number = dist.get_rank()
    groups = groups or Groups()
    groups.prepare(program)
    rank = Rank(
        program,
        number,
        project(program, number),
        optimizer or Optimizer(),
        dtype=dtype,
        device=device,
        seed=seed,
        observed=True,
    )
    rank.place(*initial(module, dtype))
    process, held = Process(rank, groups), Held()
    for step in batches:
        process.step(named(program, step, dtype))
        held.after_step(rank)
    held.at_end(rank, process.sent, process.received)
    return held
