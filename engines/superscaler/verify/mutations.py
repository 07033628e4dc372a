"""Planted bugs: what a verifier must catch, in the lists of programs that are sound.

The classes are those of the fourteen bugs that TrainVerify (SOSP 2025) reproduces, and more of our own. A class finds
the places where its bug can be planted so that it *is* one: each says why the result would be wrong, and leaves out
places where nothing would change (two addends exchanged in a sum, a permuted group of an all-reduce). A `Mutant` has
the program, with its table of runs or states altered if need be, and the lists of all ranks.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from engines.superscaler.program import LASTING, Buffer, Collective, Exchange, Instruction, Local, RunPart
from engines.superscaler.verify.footprint import ranges
from engines.superscaler.verify.values import size

if TYPE_CHECKING:
    from engines.superscaler.program import Program, Run

Lists = Mapping[int, Sequence[Instruction]]
Edit = Callable[[], "tuple[Program, Lists] | None"]


class Mutant(NamedTuple):
    """A bug, planted."""

    kind: str
    where: str
    program: Program
    lists: Lists


@dataclass(frozen=True)
class Kind:
    """A class of bugs."""

    name: str
    why: str
    """What goes wrong."""
    places: Callable[[Sound], Iterator[tuple[str, Edit]]]
    """Where it can be planted, and how."""


class Sound:
    """A sound program, looked at from the sides that bugs are planted on."""

    def __init__(self, program: Program, lists: Lists) -> None:
        self.program = program
        self.lists: dict[int, tuple[Instruction, ...]] = {rank: tuple(own) for rank, own in lists.items()}
        self.runs = {run.number: run for run in program.runs}

    @cached_property
    def collectives(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        """Calls: for every collective the (rank, index) of its members, in the group's order."""
        found: dict[tuple[tuple[int, ...], int], dict[int, int]] = {}
        for rank, own in self.lists.items():
            count: dict[tuple[int, ...], int] = {}
            for index, step in enumerate(own):
                if isinstance(step, Collective):
                    number = count.get(step.group, 0)
                    count[step.group] = number + 1
                    found.setdefault((step.group, number), {})[rank] = index
        return tuple(tuple((rank, at[rank]) for rank in group) for (group, _), at in found.items())

    @cached_property
    def alike(self) -> dict[tuple[str, Buffer, Buffer], list[tuple[tuple[int, int], ...]]]:
        """Calls by what they are of: one step of a mesh is called by several groups side by side."""
        found: dict[tuple[str, Buffer, Buffer], list[tuple[tuple[int, int], ...]]] = {}
        for members in self.collectives:
            step = self.call(members)
            found.setdefault((step.kind, step.source, step.target), []).append(members)
        return found

    def call(self, members: Sequence[tuple[int, int]]) -> Collective:
        """What the first member calls."""
        step = self.lists[members[0][0]][members[0][1]]
        if not isinstance(step, Collective):
            raise TypeError(f"instruction {members[0]} is no collective")
        return step

    def of_kind(self, *kinds: str) -> Iterator[tuple[str, tuple[tuple[int, int], ...]]]:
        """Calls of some collectives: (where, members)."""
        for members in self.collectives:
            step = self.call(members)
            if step.kind in kinds:
                yield f"{step.kind} of {step.source} at {members}", members

    def steps(self, kind: type | str) -> Iterator[tuple[int, int, Instruction]]:
        """(rank, index, instruction) of all instructions of a type, or local ones of a kind."""
        for rank, own in self.lists.items():
            for index, step in enumerate(own):
                if (isinstance(step, Local) and step.kind == kind) if isinstance(kind, str) else isinstance(step, kind):
                    yield rank, index, step

    def altered(self, changes: Mapping[tuple[int, int], Sequence[Instruction]]) -> dict[int, tuple[Instruction, ...]]:
        """The lists with some instructions replaced by none or more."""
        ranks = {rank for rank, _ in changes}
        lists = dict(self.lists)
        for rank in ranks:
            lists[rank] = tuple(
                new for index, step in enumerate(self.lists[rank]) for new in changes.get((rank, index), (step,))
            )
        return lists

    def edit(self, changes: Mapping[tuple[int, int], Sequence[Instruction]]) -> Edit:
        """A change of lists alone."""
        return lambda: (self.program, self.altered(changes))


def mutants(program: Program, lists: Lists, seed: int = 0, most: int = 1) -> Iterator[Mutant]:
    """Bugs of every class that has a place in a program, at most so many of each.

    Args:
        program: A sound one.
        lists: The instructions of its ranks.
        seed: Of the choice of places.
        most: Places of a class.
    """
    sound = Sound(program, lists)
    for kind in KINDS:
        draw = random.Random(f"{seed} {kind.name}")
        places = list(kind.places(sound))
        draw.shuffle(places)
        made = 0
        for where, edit in places:
            if made == most:
                break
            found = edit()
            if found is not None:
                made += 1
                yield Mutant(kind.name, where, *found)


# --- reductions and other collectives ---------------------------------------------------------------------------------


def _copied(step: Collective) -> Local:
    """What is left of a collective that does nothing: the rank goes on with its own part."""
    return Local("slice", (step.source,), (step.target,), tuple((0, n) for n in step.shape))


def _dropped_intact(sound: Sound) -> Iterator[tuple[str, Edit]]:
    for where, members in sound.of_kind("all-reduce"):
        yield where, sound.edit({at: (_copied(sound.call(members)),) for at in members})


def _dropped_broken(sound: Sound) -> Iterator[tuple[str, Edit]]:
    for where, members in sound.of_kind("all-reduce"):
        yield where, sound.edit(dict.fromkeys(members, ()))


def _dropped_on_one(sound: Sound) -> Iterator[tuple[str, Edit]]:
    for where, members in sound.of_kind("all-reduce", "reduce-scatter", "all-gather", "all-to-all"):
        yield where, sound.edit({members[-1]: ()})


def _reduce_becomes_gather(sound: Sound) -> Iterator[tuple[str, Edit]]:
    for where, members in sound.of_kind("all-reduce"):
        step = sound.call(members)
        if step.shape:
            yield where, sound.edit({at: (replace(step, kind="all-gather", dim=0),) for at in members})


def _gather_becomes_reduce(sound: Sound) -> Iterator[tuple[str, Edit]]:
    for where, members in sound.of_kind("all-gather"):
        yield where, sound.edit({at: (replace(sound.call(members), kind="all-reduce"),) for at in members})


def _backward_unreduced(sound: Sound) -> Iterator[tuple[str, Edit]]:
    for where, members in sound.of_kind("all-reduce", "reduce-scatter"):
        step = sound.call(members)
        if step.source.kind != "gradient":
            continue
        if step.kind == "all-reduce":
            yield where, sound.edit({at: (_copied(step),) for at in members})
            continue
        length = step.shape[step.dim] // len(members)
        changes = {}
        for number, at in enumerate(members):
            box = [(0, n) for n in step.shape]
            box[step.dim] = (number * length, (number + 1) * length)
            changes[at] = (Local("slice", (step.source,), (step.target,), tuple(box)),)
        yield where, sound.edit(changes)


def _wrong_group(sound: Sound) -> Iterator[tuple[str, Edit]]:
    for (kind, source, _), calls in sound.alike.items():
        ranks = [rank for members in calls for rank, _ in members]
        size_ = len(calls[0])
        if len(calls) != size_ or len(set(ranks)) < len(ranks) or any(len(members) != size_ for members in calls):
            continue
        changes = {}
        for column in zip(*calls, strict=True):
            group = tuple(rank for rank, _ in column)
            for rank, index in column:
                step = sound.lists[rank][index]
                changes[rank, index] = (replace(step, group=group),)  # type: ignore[type-var]
        yield f"{kind} of {source} in groups across", sound.edit(changes)


def _left_out(sound: Sound) -> Iterator[tuple[str, Edit]]:
    for where, members in sound.of_kind("all-reduce"):
        if len(members) < 3:
            continue
        step = sound.call(members)
        group = step.group[:-1]
        changes: dict[tuple[int, int], Sequence[Instruction]] = {
            at: (replace(step, group=group),) for at in members[:-1]
        }
        changes[members[-1]] = (_copied(step),)
        yield where, sound.edit(changes)


def _permuted(sound: Sound) -> Iterator[tuple[str, Edit]]:
    # The order of an all-reduce's group is of no meaning.
    for where, members in sound.of_kind("all-gather", "reduce-scatter", "all-to-all"):
        step = sound.call(members)
        group = (*step.group[1:], step.group[0])
        yield where, sound.edit({at: (replace(step, group=group),) for at in members})


def _permuted_on_one(sound: Sound) -> Iterator[tuple[str, Edit]]:
    for where, members in sound.of_kind("all-gather", "reduce-scatter", "all-to-all"):
        step = sound.call(members)
        group = (*step.group[1:], step.group[0])
        yield where, sound.edit({members[0]: (replace(step, group=group),)})


def _twice(sound: Sound) -> Iterator[tuple[str, Edit]]:
    for where, members in sound.of_kind("all-reduce"):
        step = sound.call(members)
        if step.reduction == "max":
            continue  # The greatest of equal values is that value.
        again = replace(step, source=step.target)
        yield where, sound.edit(dict.fromkeys(members, (step, again)))


def _wrong_reduction(sound: Sound) -> Iterator[tuple[str, Edit]]:
    for where, members in sound.of_kind("all-reduce", "reduce-scatter"):
        step = sound.call(members)
        other = "sum" if step.reduction == "max" else "max"
        yield where, sound.edit({at: (replace(step, reduction=other),) for at in members})  # type: ignore[arg-type]


def _wrong_dtype(sound: Sound) -> Iterator[tuple[str, Edit]]:
    for where, members in sound.of_kind("all-reduce", "reduce-scatter", "all-gather", "all-to-all"):
        step = sound.call(members)
        other = "fp16" if step.dtype != "fp16" else "fp32"
        yield where, sound.edit({members[-1]: (replace(step, dtype=other),)})


def _wrong_dim(sound: Sound) -> Iterator[tuple[str, Edit]]:
    # In all groups side by side: the members of one alone may need no more than the first member's part, which lies
    # where it should. All of them together need the whole tensor.
    for calls in sound.alike.values():
        step = sound.call(calls[0])
        for dim in range(len(step.shape)):
            if step.kind == "all-gather" and dim != step.dim:
                changes = {at: (replace(sound.call(members), dim=dim),) for members in calls for at in members}
                yield f"all-gather of {step.source} along {dim}", sound.edit(changes)


# --- messages ---------------------------------------------------------------------------------------------------------


def _exchanges(sound: Sound) -> Iterator[tuple[int, int, Exchange]]:
    for rank, index, step in sound.steps(Exchange):
        if isinstance(step, Exchange):
            yield rank, index, step


def _wrong_peer(sound: Sound) -> Iterator[tuple[str, Edit]]:
    for rank, index, step in _exchanges(sound):
        others = [other for other in sound.lists if other != rank]
        for number, piece in enumerate(step.sends):
            for other in others:
                if other != piece.peer:
                    sends = (*step.sends[:number], replace(piece, peer=other), *step.sends[number + 1 :])
                    new = replace(step, sends=sends)
                    yield f"rank {rank}, {index}: send to {other}", sound.edit({(rank, index): (new,)})
                    break


def _sends_swapped(sound: Sound) -> Iterator[tuple[str, Edit]]:
    for rank, index, step in _exchanges(sound):
        yield from _swapped(sound, rank, index, step, "sends")


def _receives_swapped(sound: Sound) -> Iterator[tuple[str, Edit]]:
    for rank, index, step in _exchanges(sound):
        yield from _swapped(sound, rank, index, step, "receives")


def _swapped(sound: Sound, rank: int, index: int, step: Exchange, side: str) -> Iterator[tuple[str, Edit]]:
    pieces = getattr(step, side)
    for one in range(len(pieces)):
        for other in range(one):
            a, b = pieces[one], pieces[other]
            if a.box == b.box or size(a.box) != size(b.box):
                continue
            changed = list(pieces)
            changed[one], changed[other] = replace(a, box=b.box), replace(b, box=a.box)
            new = replace(step, **{side: tuple(changed)})
            yield f"rank {rank}, {index}: {side} {other} and {one}", sound.edit({(rank, index): (new,)})


def _wrong_tag(sound: Sound) -> Iterator[tuple[str, Edit]]:
    for rank, index, step in _exchanges(sound):
        if step.sends or step.receives:
            changed = replace(step, tag=step.tag + 1_000_000)
            yield f"rank {rank}, {index}", sound.edit({(rank, index): (changed,)})


def _piece_lost(sound: Sound) -> Iterator[tuple[str, Edit]]:
    for rank, index, step in _exchanges(sound):
        for number, piece in enumerate(step.receives):
            changes: dict[tuple[int, int], Sequence[Instruction]] = {
                (rank, index): (replace(step, receives=(*step.receives[:number], *step.receives[number + 1 :])),)
            }
            nth = sum(before.peer == piece.peer for before in step.receives[:number])
            for at, other in enumerate(sound.lists[piece.peer]):
                if isinstance(other, Exchange) and other.tag == step.tag:
                    mine = [place for place, sent in enumerate(other.sends) if sent.peer == rank]
                    gone = mine[nth]
                    sends = (*other.sends[:gone], *other.sends[gone + 1 :])
                    changes[piece.peer, at] = (replace(other, sends=sends),)
            yield f"rank {rank}, {index}: piece {number} on both ends", sound.edit(changes)


def _addend_copied(sound: Sound) -> Iterator[tuple[str, Edit]]:
    for rank, index, step in _exchanges(sound):
        for number, piece in enumerate(step.receives):
            if piece.add:
                receives = (*step.receives[:number], replace(piece, add=False), *step.receives[number + 1 :])
                new = replace(step, receives=receives)
                yield f"rank {rank}, {index}: piece {number}", sound.edit({(rank, index): (new,)})


# --- operators --------------------------------------------------------------------------------------------------------


def _resplit(sound: Sound, run: Run) -> Iterator[tuple[str, Run, str]]:
    """(where, run with one operator split otherwise, operator): in ways that its annotation allows."""
    degrees = (*run.mesh.shape, run.mesh.sequential) if run.mesh.sequential > 1 else run.mesh.shape
    for name in run.ops:
        op = sound.program.graph.by_name[name]
        for axis, degree in enumerate(degrees):
            for other in ("", *op.annotation.splittable()):
                split = (*run.splits[name][:axis], other, *run.splits[name][axis + 1 :])
                parts = 1
                for had, count in zip(split, degrees, strict=True):
                    parts *= count if had and had == other else 1
                if other == run.splits[name][axis] or degree == 1 or (other and op.annotation.sizes[other] % parts):
                    continue
                yield f"run {run.number}, {name} split {split}", replace(run, splits={**run.splits, name: split}), name


def _differs(sound: Sound, run: Run, changed: Run, name: str, place: tuple[int, ...]) -> bool:
    """Whether a split makes a place go over other ranges."""
    op = sound.program.graph.by_name[name]
    degrees = (*run.mesh.shape, run.mesh.sequential)
    return any(
        ranges(op, run.splits[name], degrees, (*place, part))
        != ranges(op, changed.splits[name], degrees, (*place, part))
        for part in range(run.mesh.sequential)
    )


def _op_changed_on_all(sound: Sound) -> Iterator[tuple[str, Edit]]:
    for run in sound.program.runs:
        for where, changed, name in _resplit(sound, run):
            if any(_differs(sound, run, changed, name, place) for place in run.mesh.places.values()):
                yield where, _with_run(sound, changed)


def _with_run(sound: Sound, changed: Run) -> Edit:
    runs = tuple(changed if run.number == changed.number else run for run in sound.program.runs)
    return lambda: (replace(sound.program, runs=runs), sound.lists)


def _op_changed_on_one(sound: Sound) -> Iterator[tuple[str, Edit]]:
    number = max(sound.runs) + 1
    for run in sound.program.runs:
        for where, changed, name in _resplit(sound, run):
            for rank, place in run.mesh.places.items():
                if _differs(sound, run, changed, name, place):
                    yield f"{where} on rank {rank}", _on_rank(sound, run.number, replace(changed, number=number), rank)
                    break


def _on_rank(sound: Sound, old: int, new: Run, rank: int) -> Edit:
    def edit() -> tuple[Program, Lists]:
        changes = {
            (rank, index): (replace(step, run=new.number),)
            for index, step in enumerate(sound.lists[rank])
            if isinstance(step, RunPart) and step.run == old
        }
        return replace(sound.program, runs=(*sound.program.runs, new)), sound.altered(changes)

    return edit


def _op_missing(sound: Sound) -> Iterator[tuple[str, Edit]]:
    for run in sound.program.runs:
        for name in run.ops:
            left = tuple(op for op in run.ops if op != name)
            yield f"run {run.number} without {name}", _with_run(sound, replace(run, ops=left))


def _op_replaced(sound: Sound) -> Iterator[tuple[str, Edit]]:
    graph = sound.program.graph
    for run in sound.program.runs:
        for place, name in enumerate(run.ops):
            op = graph.by_name[name]
            for other in graph.ops:
                if other.target == op.target and other.name not in run.ops and other.annotation == op.annotation:
                    ops = (*run.ops[:place], other.name, *run.ops[place + 1 :])
                    splits = {**run.splits, other.name: run.splits[name]}
                    yield (
                        f"run {run.number}: {other.name} for {name}",
                        _with_run(sound, replace(run, ops=ops, splits=splits)),
                    )
                    break


def _part_changed(sound: Sound) -> Iterator[tuple[str, Edit]]:
    # All parts do the first one's work: so a bias is added on all of them.
    for run in sound.program.runs:
        for axis, degree in enumerate(run.mesh.shape):
            if degree == 1 or not any(run.splits[name][axis] for name in run.ops):
                continue
            changes = {
                (rank, index): (replace(step, place=(*step.place[:axis], 0, *step.place[axis + 1 :])),)
                for rank, index, step in sound.steps(RunPart)
                if isinstance(step, RunPart) and step.run == run.number and step.place[axis]
            }
            if changes:
                yield f"run {run.number}, axis {axis}", sound.edit(changes)


def _part_missing(sound: Sound) -> Iterator[tuple[str, Edit]]:
    loss = {sound.program.graph.loss}
    for rank, index, step in sound.steps(RunPart):
        if not isinstance(step, RunPart):
            continue
        made = {tensor for tensor, _, _ in sound.runs[step.run].outputs}
        if step.what == "forward" and not step.saved and made == loss:
            continue  # A loss that is computed again in the backward pass is there at the end all the same.
        yield f"rank {rank}, {index}: {step}", sound.edit({(rank, index): ()})


def _wrong_micro_batch(sound: Sound) -> Iterator[tuple[str, Edit]]:
    count = sound.program.plan.micro_batches
    if count < 2:
        return
    for rank, index, step in sound.steps(RunPart):
        if isinstance(step, RunPart) and step.what != "forward":
            other = (step.micro_batch + 1) % count
            yield f"rank {rank}, {index}", sound.edit({(rank, index): (replace(step, micro_batch=other),)})


def _stale_variant(sound: Sound) -> Iterator[tuple[str, Edit]]:
    layouts: dict[str, dict[str, object]] = {}
    for run in sound.program.runs:
        for tensor, variant, layout in (*run.inputs, *run.outputs):
            layouts.setdefault(tensor, {})[variant] = layout.joined()
    for run in sound.program.runs:
        for place, (tensor, variant, layout) in enumerate(run.inputs):
            for other, where in sorted(layouts[tensor].items()):
                if other != variant and _unlike(sound, tensor, layout.joined(), where, run.mesh.devices):
                    inputs = (*run.inputs[:place], (tensor, other, layout), *run.inputs[place + 1 :])
                    yield f"run {run.number} reads {tensor} as {other!r}", _with_run(sound, replace(run, inputs=inputs))


def _unlike(sound: Sound, tensor: str, one: object, other: object, ranks: Sequence[int]) -> bool:
    """Whether some rank has another part, or none, in the other layout: else reading it changes nothing."""
    shape = sound.program.graph.tensors[tensor].shape
    return any(
        rank not in other.mesh.places  # type: ignore[attr-defined]
        or one.box(shape, rank) != other.box(shape, rank)  # type: ignore[attr-defined]
        or one.addend(rank) != other.addend(rank)  # type: ignore[attr-defined]
        for rank in ranks
    )


def _wrong_gradient(sound: Sound) -> Iterator[tuple[str, Edit]]:
    for rank, own in sound.lists.items():
        live: dict[Buffer, None] = {}
        for index, step in enumerate(own):
            source = getattr(step, "source", None) or (getattr(step, "sources", None) or (None,))[0]
            reads = isinstance(step, Collective) or (
                isinstance(step, Local) and step.kind in ("add", "slice", "accumulate")
            )
            if reads and source is not None and source.kind == "gradient":
                other = next((buffer for buffer in live if buffer.tensor != source.tensor), None)
                if other is not None:
                    new: Instruction = (
                        replace(step, source=other)
                        if isinstance(step, Collective)
                        else replace(step, sources=(other, *step.sources[1:]))  # type: ignore[union-attr]
                    )
                    yield f"rank {rank}, {index}: {other} for {source}", sound.edit({(rank, index): (new,)})
            if isinstance(step, Local):
                freed = (*step.sources, *step.targets) if step.kind == "free" else ()
                for buffer in freed:
                    live.pop(buffer, None)
                if step.kind != "free":
                    live.update(dict.fromkeys(step.targets))
            elif isinstance(step, Collective | Exchange) and step.target is not None:
                live[step.target] = None


# --- scaling, gradients of weights, updates ---------------------------------------------------------------------------


def _unscaled(sound: Sound) -> Iterator[tuple[str, Edit]]:
    if sound.program.plan.micro_batches > 1:
        yield from _scaled(sound, 1.0)


def _scaled_twice(sound: Sound) -> Iterator[tuple[str, Edit]]:
    # By the number of micro-batches once more, or by that of devices, which the mean over a split batch holds already.
    count = sound.program.plan.micro_batches * len(sound.lists)
    if count > 1:
        yield from _scaled(sound, 1.0 / sound.program.plan.micro_batches / count)


def _scaled(sound: Sound, value: float) -> Iterator[tuple[str, Edit]]:
    changes = {}
    for rank, index, step in sound.steps("seed"):
        changes[rank, index] = (replace(step, value=value),)  # type: ignore[type-var]
    if changes:
        yield f"all seeds are {value}", sound.edit(changes)
        first = min(changes)
        yield f"the seed of {first} is {value}", sound.edit({first: changes[first]})


def _reduced_early(sound: Sound) -> Iterator[tuple[str, Edit]]:
    """What reads an accumulated gradient is put before the last accumulation into it, on all ranks."""
    reads: dict[Buffer, list[tuple[int, int, int]]] = {}
    for rank, own in sound.lists.items():
        last: dict[Buffer, int] = {}
        for index, step in enumerate(own):
            if isinstance(step, Local) and step.kind == "accumulate":
                last[step.targets[0]] = index
                continue
            for buffer in _sources(step):
                if buffer.kind == "gradient" and buffer.micro_batch == LASTING and buffer in last:
                    reads.setdefault(buffer, []).append((rank, index, last.pop(buffer)))
    for buffer, places in reads.items():
        changes: dict[tuple[int, int], Sequence[Instruction]] = {}
        for rank, index, before in places:
            step, accumulate = sound.lists[rank][index], sound.lists[rank][before]
            changes[rank, index] = ()
            changes[rank, before] = (step, accumulate)
        yield f"{buffer}", sound.edit(changes)


def _sources(step: Instruction) -> tuple[Buffer, ...]:
    if isinstance(step, Local):
        return () if step.kind == "free" else step.sources
    if isinstance(step, Collective):
        return (step.source,)
    return (step.source,) if isinstance(step, Exchange) and step.source is not None else ()


def _drop_local(kind: str) -> Callable[[Sound], Iterator[tuple[str, Edit]]]:
    def places(sound: Sound) -> Iterator[tuple[str, Edit]]:
        for rank, index, _ in sound.steps(kind):
            yield f"rank {rank}, {index}", sound.edit({(rank, index): ()})

    return places


def _repeat_local(kind: str) -> Callable[[Sound], Iterator[tuple[str, Edit]]]:
    def places(sound: Sound) -> Iterator[tuple[str, Edit]]:
        for rank, index, step in sound.steps(kind):
            yield f"rank {rank}, {index}", sound.edit({(rank, index): (step, step)})

    return places


def _addend_missing(sound: Sound) -> Iterator[tuple[str, Edit]]:
    # On all ranks: the copy of one alone may be of no use, where another rank's is what is sent on.
    alike: dict[Local, list[tuple[int, int]]] = {}
    for rank, index, step in sound.steps("add"):
        if isinstance(step, Local) and len(step.sources) > 1:
            alike.setdefault(step, []).append((rank, index))
    for step, places in alike.items():
        new = replace(step, sources=step.sources[1:])
        yield f"{step.sources[0]} at {places}", sound.edit(dict.fromkeys(places, (new,)))


def _mask_kept(sound: Sound) -> Iterator[tuple[str, Edit]]:
    for rank, index, step in sound.steps("mask"):
        new = replace(step, keep=not step.keep)  # type: ignore[type-var,union-attr]
        yield f"rank {rank}, {index}", sound.edit({(rank, index): (new,)})


def _wrong_state(sound: Sound) -> Iterator[tuple[str, Edit]]:
    for tensor, layout in sound.program.states.items():
        shape = sound.program.graph.tensors[tensor].shape
        whole = replace(layout, dims=((),) * len(layout.dims))
        others = [whole]
        for axis, degree in enumerate(layout.mesh.shape):
            for dim, length in enumerate(shape):
                if degree > 1 and length % degree == 0:
                    dims = [()] * len(shape)
                    dims[dim] = (axis,)
                    others.append(replace(layout, dims=tuple(dims)))
        for other in others:
            if any(other.box(shape, rank) != layout.box(shape, rank) for rank in layout.mesh.devices):
                states = {**sound.program.states, tensor: other}
                yield (
                    f"{tensor} in {other.dims}",
                    lambda states=states: (replace(sound.program, states=states), sound.lists),
                )
                break


# --- order and life of buffers ----------------------------------------------------------------------------------------


def _communication(step: Instruction) -> frozenset[int]:
    if isinstance(step, Collective):
        return frozenset(step.group)
    if isinstance(step, Exchange):
        return frozenset(piece.peer for piece in (*step.sends, *step.receives))
    return frozenset()


def _out_of_order(sound: Sound) -> Iterator[tuple[str, Edit]]:
    for rank, own in sound.lists.items():
        before: int | None = None
        for index, step in enumerate(own):
            partners = _communication(step) - {rank}
            if not partners:
                continue
            # Only where a third rank takes part in both, in the old order, must one of them wait for ever.
            # Two that are the same (a weight gathered for each pass) can change places.
            if before is not None and partners & _communication(own[before]) and step != own[before]:
                changes = {(rank, before): (step,), (rank, index): (own[before],)}
                yield f"rank {rank}, {before} and {index}", sound.edit(changes)
            before = index


def _never_freed(sound: Sound) -> Iterator[tuple[str, Edit]]:
    for rank, index, step in sound.steps("free"):
        if isinstance(step, Local):
            buffers = (*step.sources, *step.targets)
            new = (replace(step, sources=buffers[1:], targets=()),) if len(buffers) > 1 else ()
            yield f"rank {rank}, {index}: {buffers[0]}", sound.edit({(rank, index): new})


def _freed_early(sound: Sound) -> Iterator[tuple[str, Edit]]:
    for rank, index, step in sound.steps("free"):
        if not isinstance(step, Local):
            continue
        buffers = {*step.sources, *step.targets}
        for at in range(index - 1, -1, -1):
            earlier = sound.lists[rank][at]
            if buffers & set(_sources(earlier)):
                yield f"rank {rank}, {index} before {at}", sound.edit({(rank, index): (), (rank, at): (step, earlier)})
                break


def _wrong_box(kind: str) -> Callable[[Sound], Iterator[tuple[str, Edit]]]:
    def places(sound: Sound) -> Iterator[tuple[str, Edit]]:
        for rank, index, step in sound.steps(kind):
            if not isinstance(step, Local):
                continue
            shape = sound.program.graph.tensors[step.targets[0].tensor].shape
            for dim, (start, stop) in enumerate(step.box):
                length = stop - start
                other = start - length if start >= length else start + length
                if other >= 0 and other + length <= shape[dim] and other != start:
                    box = (*step.box[:dim], (other, other + length), *step.box[dim + 1 :])
                    yield f"rank {rank}, {index}: {box}", sound.edit({(rank, index): (replace(step, box=box),)})
                    break

    return places


KINDS: tuple[Kind, ...] = (
    Kind("all-reduce dropped, flow intact", "ranks go on with their own addends", _dropped_intact),
    Kind("all-reduce dropped, flow broken", "what it would make is read and not there", _dropped_broken),
    Kind("collective dropped on one rank", "the others wait for it for ever", _dropped_on_one),
    Kind("all-reduce becomes all-gather", "addends are put side by side", _reduce_becomes_gather),
    Kind("all-gather becomes all-reduce", "different parts are added", _gather_becomes_reduce),
    Kind("backward reduction missing", "a gradient lacks what other parts contribute", _backward_unreduced),
    Kind("wrong peer", "a message goes to who does not expect it", _wrong_peer),
    Kind("sent parts exchanged", "each of two receivers gets the other's part", _sends_swapped),
    Kind("output order exchanged", "parts are put into each other's places", _receives_swapped),
    Kind("wrong tag", "two ends of a message never meet", _wrong_tag),
    Kind("piece lost on both ends", "a part, or an addend, is missing", _piece_lost),
    Kind("addend copied", "what was there before is written over", _addend_copied),
    Kind("operator split otherwise on one rank", "its part does not fit the others'", _op_changed_on_one),
    Kind("operator split otherwise on all ranks", "parts do not fit what is read or yielded", _op_changed_on_all),
    Kind("operator missing", "what it makes is read and not there", _op_missing),
    Kind("operator replaced by one alike", "a layer's work is done with another's weights", _op_replaced),
    Kind("part changed", "all parts do the first one's work: a bias is added by each", _part_changed),
    Kind("run missing on one rank", "what it makes is not there", _part_missing),
    Kind("backward of another micro-batch", "a gradient is taken at the wrong activations", _wrong_micro_batch),
    Kind("backward consumes wrong tensor", "another gradient is passed on", _wrong_gradient),
    Kind("stale variant", "a run reads a tensor in another layout than it computes on", _stale_variant),
    Kind("not scaled", "the sum over micro-batches instead of their mean", _unscaled),
    Kind("scaled twice", "the mean is divided again", _scaled_twice),
    Kind("reduced before the last micro-batch", "the last micro-batch is not in what is reduced", _reduced_early),
    Kind("micro-batch not accumulated", "a micro-batch's gradient is lost", _drop_local("accumulate")),
    Kind("micro-batch accumulated twice", "a micro-batch's gradient counts double", _repeat_local("accumulate")),
    Kind("wrong group", "addends of other parts are summed (another expert's group)", _wrong_group),
    Kind("rank left out of a group", "its addend is missing", _left_out),
    Kind("permuted devices", "parts are gathered, or scattered, in another order", _permuted),
    Kind("permuted devices on one rank", "members do not agree on the order of parts", _permuted_on_one),
    Kind("reduced twice", "everything counts as often as the group has members", _twice),
    Kind("wrong reduction", "a maximum of addends, or a sum of maxima", _wrong_reduction),
    Kind("wrong dtype on one rank", "bytes are read as other numbers", _wrong_dtype),
    Kind("gathered along another dim", "parts are not where they are read", _wrong_dim),
    Kind("addend missing", "a reader's part of a gradient is lost", _addend_missing),
    Kind("wrong copy masked", "a value counts twice or not at all", _mask_kept),
    Kind("update missing on one rank", "copies of a weight drift apart, or a part stays old", _drop_local("update")),
    Kind("updated twice", "the optimizer takes two steps", _repeat_local("update")),
    Kind("wrong optimizer layout", "the state belongs to another part than the gradient", _wrong_state),
    Kind("communication out of order on one rank", "two ranks wait for each other", _out_of_order),
    Kind("never freed", "memory grows from step to step", _never_freed),
    Kind("freed too early", "what is read is gone", _freed_early),
    Kind("wrong slice", "another part is taken", _wrong_box("slice")),
    Kind("wrong part of the batch", "a part of the batch counts twice, another not at all", _wrong_box("load")),
)
"""All classes."""
