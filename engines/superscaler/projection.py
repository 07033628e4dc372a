"""From the program of all ranks to the instructions of one.

Because every rank's list is a projection of one order, all members of a collective call it at the same place among
their calls, and both ends of a message post it in the same order.
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from typing import TYPE_CHECKING

from engines.superscaler import redistribution
from engines.superscaler.program import (
    HERE,
    LASTING,
    Accumulate,
    Action,
    Add,
    Buffer,
    Collective,
    Compute,
    Exchange,
    Free,
    Instruction,
    Load,
    Local,
    Move,
    Piece,
    RunPart,
    Sections,
    Seed,
    Transfer,
    Update,
)
from harness.api import HarnessError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from engines.superscaler.layout import Box, Layout, Mesh
    from engines.superscaler.plan import Block
    from engines.superscaler.program import Program


def project(program: Program, rank: int) -> tuple[Instruction, ...]:
    """What one rank does in a step, in order.

    Raises:
        HarnessError: the program has a step that no rank could carry out.
    """
    return tuple(instructions(program, rank))


def instructions(program: Program, rank: int) -> Iterator[Instruction]:
    """`project`, one by one: for programs of a thousand ranks and hundreds of micro-batches."""
    sections, tag = program.sections, 0
    if not isinstance(sections, Sections):
        for section in sections:
            found, count = _projected(program, section.actions, rank, tag)
            tag += count
            yield from found
        return
    # What a template is to one rank is found once; between micro-batches numbers alone differ.
    known: dict[int, tuple[list[Instruction], int]] = {}
    for block, which in zip(sections.blocks, sections.which, strict=True):
        if which not in known:
            known[which] = _projected(program, sections.templates[which], rank, 0)
        found, count = known[which]
        yield from (_placed(each, block, tag) for each in found)
        tag += count


def _projected(program: Program, actions: Sequence[Action], rank: int, tag: int) -> tuple[list[Instruction], int]:
    """(instructions of one rank, how many tags the actions use up)."""
    found: list[Instruction] = []
    first = tag
    for action in actions:
        if isinstance(action, Transfer) or (isinstance(action, Move) and action.kind == "exchange"):
            tag += 1
        instruction = _project(program, action, rank, tag)
        if instruction is not None:
            found.append(instruction)
    return found, tag - first


def _placed(instruction: Instruction, block: Block | None, tag: int) -> Instruction:
    """An instruction of a template, for the block's micro-batch and with tags that follow those before."""
    micro_batch = LASTING if block is None else block.micro_batch

    def at(buffer: Buffer) -> Buffer:
        return buffer._replace(micro_batch=micro_batch) if buffer.micro_batch == HERE else buffer

    match instruction:
        case RunPart(run, what, _, saved, place):
            return RunPart(run, what, micro_batch, saved, place)
        case Collective(kind, group, source, target, dim, split, reduction, shape, dtype):
            return Collective(kind, group, at(source), at(target), dim, split, reduction, shape, dtype)
        case Exchange(source, target, sends, receives, keeps, shape, dtype, own):
            ends = (None if source is None else at(source), None if target is None else at(target))
            return Exchange(*ends, sends, receives, keeps, shape, dtype, tag + own)
        case Local(kind, sources, targets, box, keep, value):
            return Local(kind, tuple(map(at, sources)), tuple(map(at, targets)), box, keep, value)


def _project(program: Program, action: Action, rank: int, tag: int) -> Instruction | None:
    match action:
        case Compute(run, what, micro_batch, saved):
            place = program.runs[run].mesh.places.get(rank)
            return None if place is None else RunPart(run, what, micro_batch, saved, place)
        case Transfer():
            return _exchange(action, rank, tag)
        case Move(kind="exchange"):
            return _exchange(action, rank, tag)
        case _ if rank not in action.mesh.places:
            return None
        case Load(_, target, layout):
            shape = program.graph.tensors[target.tensor].shape
            return Local("load", targets=(target,), box=layout.box(shape, rank))
        case Move(kind="slice"):
            box = _within(action.after.box(action.shape, rank), action.before.box(action.shape, rank))
            return Local("slice", (action.source,), (action.target,), box)
        case Move(kind="mask"):
            new = set(action.after.partial) - set(action.before.partial)
            keep = not any(action.mesh.places[rank][axis] for axis in new)
            return Local("mask", (action.source,), (action.target,), keep=keep)
        case Move():
            return _collective(action, rank)
        case Add(_, sources, target):
            return Local("add", sources, (target,))
        case Seed(_, target, value):
            return Local("seed", targets=(target,), value=value)
        case Accumulate(_, source, target):
            return Local("accumulate", (source,), (target,))
        case Update(_, weight, gradient, _):
            return Local("update", (weight, gradient), (weight,))
        case Free(_, buffers):
            return Local("free", buffers)
    raise HarnessError(f"no instruction for {action!r}")


def _collective(action: Move, rank: int) -> Collective:
    group, dim, split = _shape_of(action.kind, action.axes, action.before, action.after, rank)
    return Collective(
        action.kind,  # type: ignore[arg-type]
        group,
        action.source,
        action.target,
        dim,
        split,
        action.before.reduction,
        action.before.local_shape(action.shape),
        action.dtype,
    )


@lru_cache(maxsize=65536)
def _shape_of(
    kind: str, axes: tuple[int, ...], before: Layout, after: Layout, rank: int
) -> tuple[tuple[int, ...], int, int]:
    """(group in the order of its members' parts, dim gathered or scattered, dim that an all-to-all splits)."""
    gathered = _changed(before, after, axes)
    scattered = _changed(after, before, axes)
    dim, split, order = -1, -1, axes
    if kind == "all-gather":
        dim, order = gathered
    elif kind == "reduce-scatter":
        dim, order = scattered
    elif kind == "all-to-all":
        (dim, order), (split, other) = gathered, scattered
        if order != other:
            raise HarnessError(f"an all-to-all from {before.dims} to {after.dims} would put parts in another order")
    return _group(before.mesh, order, rank), dim, split


def _changed(larger: Layout, smaller: Layout, axes: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    """(dim, axes) by which a dim of one layout is split further than in the other; (-1, axes) if none is."""
    for dim, (more, less) in enumerate(zip(larger.dims, smaller.dims, strict=True)):
        if len(more) > len(less):
            if more[: len(less)] != less or set(more[len(less) :]) != set(axes):
                raise HarnessError(
                    f"a collective along {axes} cannot turn {more} into {less}: parts are not neighbours"
                )
            return dim, more[len(less) :]
    return -1, axes


def _group(mesh: Mesh, axes: tuple[int, ...], rank: int) -> tuple[int, ...]:
    own = mesh.places[rank]
    members = [
        (tuple(place[axis] for axis in axes), device)
        for device, place in mesh.places.items()
        if all(place[axis] == own[axis] for axis in range(len(own)) if axis not in axes)
    ]
    return tuple(device for _, device in sorted(members))


def _exchange(action: Move | Transfer, rank: int, tag: int) -> Exchange | None:
    has, gets = rank in action.before.mesh.places, rank in action.after.mesh.places
    if not has and not gets:
        return None
    sends, receives, keeps = _pieces_of(action.before, action.after, action.shape, rank)
    if not gets and not sends:
        return None
    return Exchange(
        action.source if has else None,
        action.target if gets else None,
        sends,
        receives,
        keeps,
        action.after.local_shape(action.shape) if gets else (),
        action.dtype,
        tag,
    )


_Pieces = tuple[tuple[Piece, ...], tuple[Piece, ...], tuple[tuple["Box", "Box", bool], ...]]


def _pieces_of(before: Layout, after: Layout, shape: tuple[int, ...], rank: int) -> _Pieces:
    none: _Pieces = ((), (), ())
    return _all_pieces(before, after, shape).get(rank, none)


@lru_cache(maxsize=4096)
def _all_pieces(before: Layout, after: Layout, shape: tuple[int, ...]) -> dict[int, _Pieces]:
    """For every rank what it sends, receives and keeps, in regions of its own parts."""
    sends: dict[int, list[Piece]] = {}
    receives: dict[int, list[Piece]] = {}
    keeps: dict[int, list[tuple[Box, Box, bool]]] = {}
    found = redistribution.pieces(before, after, shape)
    terms = Counter((piece.target, piece.box) for piece in found)
    for piece in found:
        there = _within(piece.box, after.box(shape, piece.target))
        here = _within(piece.box, before.box(shape, piece.source))
        # Where several addends meet, all are added to the zeros that a part starts from: in whatever order they come.
        add = terms[piece.target, piece.box] > 1
        if piece.source == piece.target:
            keeps.setdefault(piece.target, []).append((here, there, add))
        else:
            sends.setdefault(piece.source, []).append(Piece(piece.target, here))
            receives.setdefault(piece.target, []).append(Piece(piece.source, there, add))
    ranks = {*sends, *receives, *keeps}
    return {
        rank: (tuple(sends.get(rank, ())), tuple(receives.get(rank, ())), tuple(keeps.get(rank, ()))) for rank in ranks
    }


def _within(box: Box, frame: Box) -> Box:
    return tuple((start - left, stop - left) for (start, stop), (left, _) in zip(box, frame, strict=True))
