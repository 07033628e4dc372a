"""What communication does to tensors, whatever carries it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from engines.superscaler.runtime.routine import combine

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from engines.superscaler.program import Collective, Exchange, Piece
    from engines.superscaler.runtime.interpreter import Rank


def collected(called: Collective, parts: Sequence[Tensor]) -> list[Tensor]:
    """What each member has after a collective, from the members' parts in the group's order."""
    n = len(parts)
    match called.kind:
        case "all-reduce":
            total = combine(parts, called.reduction)
            return [total.clone() for _ in parts]
        case "reduce-scatter":
            return [piece.clone() for piece in combine(parts, called.reduction).chunk(n, called.dim)]
        case "all-gather":
            return [torch.cat(tuple(parts), called.dim) for _ in parts]
        case _:
            pieces = [part.chunk(n, called.split) for part in parts]
            return [torch.cat([row[member] for row in pieces], called.dim) for member in range(n)]


def exchanged(rank: Rank, exchange: Exchange, value: Tensor | None, arrived: Mapping[int, Sequence[Tensor]]) -> Tensor:
    """What a rank has after an exchange.

    Args:
        rank: That takes part.
        exchange: With a target.
        value: That of the exchange's source on this rank, if it has one.
        arrived: From every peer the pieces it sent, in the order of the exchange.

    Returns:
        Pieces in their places, copies before what is added to them, so that the order of arrival is of no matter.
    """
    placed = [(into, add, value[slices(box)]) for box, into, add in exchange.keeps]
    queues = {peer: iter(pieces) for peer, pieces in arrived.items()}
    placed += [(piece.box, piece.add, next(queues[piece.peer])) for piece in exchange.receives]
    dtype = placed[0][2].dtype if placed else rank.dtype
    target = torch.zeros(exchange.shape, dtype=dtype, device=rank.device)
    for box, add, piece in sorted(placed, key=lambda item: item[1]):
        if add:
            target[slices(box)].add_(piece)
        else:
            target[slices(box)].copy_(piece)
    return target


def slices(box: tuple[tuple[int, int], ...]) -> tuple[slice, ...]:
    """A box as an index."""
    return tuple(slice(begin, end) for begin, end in box)


def sizes(piece: Piece) -> tuple[int, ...]:
    """The shape of a piece."""
    return tuple(end - begin for begin, end in piece.box)
