"""Level 1: every rank's list interpreted on contents instead of numbers.

Each buffer is known by what it holds (`values`), each communication and run is carried out on that, and everything that
is read is held against what the model on one device would have there (`truth`). Nothing that phase 3 recorded is
believed: not the layouts in a `Move`, not the variants' names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engines.superscaler.program import LASTING, Buffer, Collective, Exchange, Local, RunPart
from engines.superscaler.verify.findings import Finding
from engines.superscaler.verify.footprint import Footprint, at, footprint
from engines.superscaler.verify.truth import Truth
from engines.superscaler.verify.values import (
    Conflict,
    Part,
    Region,
    Value,
    added,
    assembled,
    covers,
    difference,
    extent,
    given,
    joined,
    named,
    seed,
    size,
    sliced,
    within,
    written,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from engines.superscaler.layout import Box, Layout
    from engines.superscaler.program import Program
    from engines.superscaler.verify.rendezvous import Event, Lists, Meeting
    from engines.superscaler.verify.values import Content

Held = Value | None
"""None: something of which a finding has been made already, so that nothing more is said of it."""


def interpret(program: Program, lists: Lists, meeting: Meeting) -> tuple[Finding, ...]:
    """Follow the events of a symbolic execution; if it came to an end, judge the state it ends in as well."""
    ranks = _Ranks(program, lists)
    for event in meeting.events:
        ranks.follow(event)
    if meeting.finished:
        ranks.conclude()
    return tuple(sorted(set(ranks.findings)))


class _Ranks:
    """All ranks, and what their buffers hold."""

    def __init__(self, program: Program, lists: Lists) -> None:
        self.program, self.lists = program, lists
        self.graph = program.graph
        self.truth = Truth(program.graph)
        self.micro_batches = tuple(range(program.plan.micro_batches))
        self.runs = {run.number: run for run in program.runs}
        self.findings: list[Finding] = []
        self.footprints: dict[tuple[int, tuple[int, ...]], Footprint] = {}
        self.traces: dict[tuple[int, tuple[int, ...], str, int], tuple[tuple[Buffer, Value], ...]] = {}
        self.held: dict[int, dict[Buffer, Held]] = {rank: {} for rank in lists}
        self.saved: dict[int, dict[tuple[int, int], tuple[str, tuple[int, ...]]]] = {rank: {} for rank in lists}
        """(run, micro-batch) -> what has been done of it, and where."""
        self.posted: dict[tuple[int, int], tuple[Held, Exchange]] = {}
        """What a rank gives in an exchange, by rank and tag."""
        self.computed: dict[tuple[str, int], set[Box]] = {}
        self.reported: set[tuple[str, str]] = set()
        for tensor, layout in program.weights.items():
            for rank in layout.mesh.devices:
                if rank in self.held:
                    value = self._of_layout(tensor, layout, rank, given(LASTING))
                    self.held[rank][Buffer(tensor, "value")] = value

    # --- the events -----------------------------------------------------------------------------------------------

    def follow(self, event: Event) -> None:
        """Carry out what happened."""
        rank, index = event.at[0]
        step = self.lists[rank][index]
        if event.kind == "meet":
            self._collective(event.at)
        elif event.kind == "post":
            self._post(rank, index, step)  # type: ignore[arg-type]
        elif event.kind == "finish":
            self._exchange(rank, index, step)  # type: ignore[arg-type]
        elif isinstance(step, RunPart):
            self._run(rank, index, step)
        else:
            self._local(rank, index, step)  # type: ignore[arg-type]

    def conclude(self) -> None:
        """What must hold after the step: losses, weights, nothing computed in part, nothing left behind."""
        self._losses()
        self._weights()
        self._coverage()
        self._remains()

    # --- runs -----------------------------------------------------------------------------------------------------

    def _run(self, rank: int, index: int, step: RunPart) -> None:
        place = (step.run, step.place)
        if place not in self.footprints:
            self.footprints[place] = footprint(self.truth, self.runs[step.run], step.place)
        trace = self.footprints[place]
        for fault in trace.faults:
            self._find(rank, index, fault.invariant, fault.message)
        if step.what == "forward":
            self._forward(rank, index, step, trace)
        else:
            self._backward(rank, index, step)

    def _forward(self, rank: int, index: int, step: RunPart, trace: Footprint) -> None:
        for buffer, want in self._buffers(step, "reads"):
            self._expect(rank, index, buffer, want)
        for buffer, value in self._buffers(step, "makes"):
            self._write(rank, index, buffer, value)
        for name, boxes in trace.computed.items():
            self.computed.setdefault((name, step.micro_batch), set()).update(boxes)
        key = (step.run, step.micro_batch)
        if step.saved:
            if key in self.saved[rank]:
                self._find(rank, index, "I3", f"does run {key[0]} for micro-batch {key[1]} again and keeps it twice")
            self.saved[rank][key] = ("forward", step.place)

    def _backward(self, rank: int, index: int, step: RunPart) -> None:
        run = self.runs[step.run]
        key = (step.run, step.micro_batch)
        done, place = self.saved[rank].get(key, ("", step.place))
        needed = "inputs" if step.what == "weights" else "forward"
        if run.mesh.sequential > 1:
            for buffer, want in self._buffers(step, "reads"):
                self._expect(rank, index, buffer, want)
        else:
            if done != needed:
                what = {"": "was not kept", "forward": "was done forward alone", "inputs": "was done by half"}[done]
                message = f"{step.what} of run {key[0]} for micro-batch {key[1]}, which {what} (or is over)"
                self._find(rank, index, "I3", message)
            elif place != step.place:
                message = f"{step.what} of run {key[0]} at {step.place}, which was done forward at {place}"
                self._find(rank, index, "I4", message)
            for buffer, want in self._buffers(step, "reads"):
                if self.graph.tensors[buffer.tensor].role == "parameter":
                    self._expect(rank, index, buffer, want)
        wanted = dict(self._buffers(step, "wants"))
        if step.what != "weights":
            self._arriving(rank, index, step, wanted)
        for buffer, value in self._buffers(step, "yields"):
            weight = self.graph.tensors[buffer.tensor].role == "parameter"
            if step.what == "backward" or weight == (step.what == "weights"):
                self._write(rank, index, buffer, value)
        if step.what == "inputs":
            self.saved[rank][key] = ("inputs", place)
        else:
            self.saved[rank].pop(key, None)

    def _arriving(self, rank: int, index: int, step: RunPart, wanted: Mapping[Buffer, Value]) -> None:
        told = [Buffer(tensor, "gradient", "", step.micro_batch) for tensor in self.runs[step.run].gradient_outputs]
        for buffer in told:
            if buffer in wanted:
                self._expect(rank, index, buffer, wanted[buffer])
            else:
                self._find(rank, index, "I1", f"reads {_named(buffer)}, of which no reader outside the run has a part")
        for buffer in wanted:
            if buffer not in told:
                self._find(rank, index, "I1", f"takes for zero {_named(buffer)}, to which others contribute")

    def _buffers(self, step: RunPart, side: str) -> tuple[tuple[Buffer, Value], ...]:
        """A side of a run's footprint, for a micro-batch, under the names of buffers."""
        key = (step.run, step.place, side, step.micro_batch)
        if key not in self.traces:
            found = []
            for tensor, variant, value in getattr(self.footprints[step.run, step.place], side):
                if side == "wants":
                    variant = ""
                micro_batch = step.micro_batch
                if value.kind == "value" and self.graph.tensors[tensor].role in ("parameter", "buffer"):
                    micro_batch = LASTING
                found.append((Buffer(tensor, value.kind, variant, micro_batch), at(value, step.micro_batch)))
            self.traces[key] = tuple(found)
        return self.traces[key]

    # --- communication ---------------------------------------------------------------------------------------------

    def _collective(self, members: Sequence[tuple[int, int]]) -> None:
        steps: list[Collective] = [self.lists[rank][index] for rank, index in members]  # type: ignore[misc]
        values = [self._read(rank, index, step.source) for (rank, index), step in zip(members, steps, strict=True)]
        results: list[Held | Conflict]
        if any(value is None for value in values):
            results = [None] * len(members)
        else:
            for (rank, index), step, value in zip(members, steps, values, strict=True):
                if value is not None and value.shape != step.shape:
                    message = f"says that {_named(step.source)} has shape {step.shape}, it has {value.shape}"
                    self._find(rank, index, "schema", message)
            results = [
                _collected(step, number, tuple(values))  # type: ignore[arg-type]
                for number, step in enumerate(steps)
            ]
        for (rank, index), step, result in zip(members, steps, results, strict=True):
            if isinstance(result, Conflict):
                who = f"{step.kind} among {list(step.group)} {result.message}"
                self._find(rank, index, result.invariant, who)
                result = None
            self._write(rank, index, step.target, result)

    def _post(self, rank: int, index: int, step: Exchange) -> None:
        own = self._read(rank, index, step.source) if step.source is not None else None
        self.posted[rank, step.tag] = (own, step)
        if own is not None:
            for box in (*(piece.box for piece in step.sends), *(source for source, _, _ in step.keeps)):
                if not within(box, own.shape):
                    message = f"sends {written(box)} of {_named(step.source)}, which has shape {own.shape}"
                    self._find(rank, index, "I2", message)
                    self.posted[rank, step.tag] = (None, step)

    def _exchange(self, rank: int, index: int, step: Exchange) -> None:
        own, _ = self.posted.get((rank, step.tag), (None, step))
        if step.target is None:
            return
        parts = []
        unknown = bool(step.keeps) and own is None
        for source, target, add in step.keeps:
            if own is not None:
                parts.append(Part(target, sliced(own, source), add, local=True))
        taken: dict[int, int] = {}
        for piece in step.receives:
            sent = self._sent(rank, piece.peer, taken.get(piece.peer, 0), step.tag)
            taken[piece.peer] = taken.get(piece.peer, 0) + 1
            if sent is None:
                unknown = True
            elif sent.shape != size(piece.box):
                return self._write(rank, index, step.target, None)  # Level 2 says so.
            else:
                parts.append(Part(piece.box, sent, piece.add, local=False))
        if unknown or not parts:
            return self._write(rank, index, step.target, None)
        result = assembled(tuple(parts), step.shape)
        if isinstance(result, Conflict):
            self._find(rank, index, result.invariant, f"exchange {step.tag} {result.message}")
            return self._write(rank, index, step.target, None)
        self._write(rank, index, step.target, result)
        return None

    def _sent(self, rank: int, peer: int, number: int, tag: int) -> Held:
        """What a peer, which is in its exchange or past it, sends as its number-th piece."""
        value, step = self.posted.get((peer, tag), (None, None))
        pieces = [piece for piece in step.sends if piece.peer == rank] if step else []
        if value is None or number >= len(pieces):
            return None
        return sliced(value, pieces[number].box)

    # --- what a rank does alone ------------------------------------------------------------------------------------

    def _local(self, rank: int, index: int, step: Local) -> None:
        match step.kind:
            case "free":
                for buffer in (*step.sources, *step.targets):
                    if buffer not in self.held[rank]:
                        self._find(rank, index, "I3", f"frees {_named(buffer)}, which is not there")
                    self.held[rank].pop(buffer, None)
            case "load":
                self._load(rank, index, step)
            case "seed":
                self._seed(rank, index, step)
            case "update":
                self._update(rank, index, step)
            case "accumulate":
                self._accumulate(rank, index, step)
            case _:
                self._transform(rank, index, step)

    def _load(self, rank: int, index: int, step: Local) -> None:
        target = step.targets[0]
        tensor = self.graph.tensors[target.tensor]
        content = given(LASTING if tensor.role == "buffer" else target.micro_batch)
        shape = size(step.box)
        value = Value(tensor.name, "value", shape, (Region(extent(shape), step.box, content),))
        self._write(rank, index, target, value)

    def _seed(self, rank: int, index: int, step: Local) -> None:
        target = step.targets[0]
        count = len(self.micro_batches)
        if step.value != 1 / count:
            message = (
                f"starts the backward pass with {step.value}; the mean over {count} micro-batches wants {1 / count}"
            )
            self._find(rank, index, "I8", message)
        shape = self.graph.tensors[self.graph.loss].shape
        region = Region(extent(shape), extent(shape), seed(target.micro_batch))
        self._write(rank, index, target, Value(self.graph.loss, "gradient", shape, (region,)))

    def _update(self, rank: int, index: int, step: Local) -> None:
        weight, gradient = step.sources
        tensor = weight.tensor
        want = self.truth.gradient(tensor, self.micro_batches)
        held = self._read(rank, index, weight)
        used = self._read(rank, index, gradient)
        if tensor in self.program.states and rank in self.program.states[tensor].mesh.places:
            box = self.program.states[tensor].joined().box(self.graph.tensors[tensor].shape, rank)
        else:
            self._find(rank, index, "I4", f"updates {tensor!r}, of which it keeps no optimizer state")
            return
        content = self.truth.value(tensor, LASTING)
        shape = size(box)
        if held is not None:
            self._compare(
                rank, index, weight, held, Value(tensor, "value", shape, (Region(extent(shape), box, content),))
            )
        if used is not None:
            region = Region(extent(shape), box, want)
            self._compare(rank, index, gradient, used, Value(tensor, "gradient", shape, (region,)), "I7")
        done = Region(extent(shape), box, self.truth.value(tensor, LASTING, 1))
        self.held[rank][weight] = Value(tensor, "value", shape, (done,)) if held is not None else None

    def _accumulate(self, rank: int, index: int, step: Local) -> None:
        source, target = step.sources[0], step.targets[0]
        value = self._read(rank, index, source)
        if target in self.held[rank]:
            before = self.held[rank][target]
            if value is None or before is None:
                self.held[rank][target] = None
                return
            self._put(rank, index, step, target, added((before, value), "sum"), anew=False)
            return
        self._write(rank, index, target, value)

    def _transform(self, rank: int, index: int, step: Local) -> None:
        values = [self._read(rank, index, source) for source in step.sources]
        target = step.targets[0]
        if any(value is None for value in values):
            self._write(rank, index, target, None)
            return
        first: Value = values[0]  # type: ignore[assignment]
        result: Value | Conflict
        if step.kind == "slice":
            if not within(step.box, first.shape):
                message = f"takes {written(step.box)} of {_named(step.sources[0])}, which has shape {first.shape}"
                result = Conflict("I2", message)
            else:
                result = sliced(first, step.box)
        elif step.kind == "mask":
            zeros = tuple(region._replace(content=()) for region in first.regions)
            result = first if step.keep else first._replace(regions=zeros)
        else:
            result = added(tuple(values), "sum") if len(values) > 1 else first  # type: ignore[arg-type]
        self._put(rank, index, step, target, result)

    def _put(
        self, rank: int, index: int, step: Local, target: Buffer, result: Value | Conflict, anew: bool = True
    ) -> None:
        if isinstance(result, Conflict):
            self._find(rank, index, result.invariant, f"{step.kind} {result.message}")
            self.held[rank][target] = None
        elif anew:
            self._write(rank, index, target, result)
        else:
            self.held[rank][target] = result

    # --- buffers ---------------------------------------------------------------------------------------------------

    def _read(self, rank: int, index: int, buffer: Buffer) -> Held:
        if buffer not in self.held[rank]:
            self._find(rank, index, "I3", f"reads {_named(buffer)}, which is not there")
            return None
        return self.held[rank][buffer]

    def _write(self, rank: int, index: int, buffer: Buffer, value: Held) -> None:
        """Make a buffer. Over what is there only a weight may be made, where it is kept, and a loss again."""
        home = buffer.tensor in self.program.weights and buffer == Buffer(buffer.tensor, "value")
        again = buffer in self.program.losses and self.held[rank].get(buffer) == value
        if buffer in self.held[rank] and not home and not again:
            self._find(rank, index, "I3", f"writes {_named(buffer)} over what is there")
        self.held[rank][buffer] = value

    def _expect(self, rank: int, index: int, buffer: Buffer, want: Value) -> None:
        have = self._read(rank, index, buffer)
        if have is not None:
            self._compare(rank, index, buffer, have, want)

    def _compare(self, rank: int, index: int, buffer: Buffer, have: Value, want: Value, invariant: str = "I1") -> None:
        if have == want:
            return
        what = f"reads {_named(buffer)}, "
        if (have.tensor, have.kind) != (want.tensor, want.kind):
            self._find(rank, index, "I1", f"{what}which holds {named(have)}")
            return
        wanted = want.regions[0]
        if len(have.regions) > 1:
            where = ", ".join(f"{written(r.whole)} at {written(r.local)}" for r in have.regions[:4])
            alike = len({region.content for region in have.regions}) == 1
            reason = "is not one region in its order" if alike else "is not everywhere the sum of the same"
            self._find(rank, index, "I2", f"{what}which {reason}: {where}")
        elif have.regions[0].whole != wanted.whole:
            here = written(have.regions[0].whole)
            self._find(rank, index, "I2", f"{what}which is {here} of it instead of {written(wanted.whole)}")
        else:
            self._find(rank, index, invariant, f"{what}which {difference(have.regions[0].content, wanted.content)}")

    def _of_layout(self, tensor: str, layout: Layout, rank: int, content: Content) -> Value:
        box = layout.joined().box(self.graph.tensors[tensor].shape, rank)
        return Value(tensor, "value", size(box), (Region(extent(size(box)), box, content),))

    # --- the end of a step -----------------------------------------------------------------------------------------

    def _losses(self) -> None:
        layout, loss = self.program.loss_layout, self.graph.loss
        if layout is None or len(self.program.losses) != len(self.micro_batches):
            self._find(-1, -1, "I4", "does not say where the loss of every micro-batch is")
            return
        whole = self.truth.value(loss, 0)
        for micro_batch, buffer in enumerate(self.program.losses):
            addends: dict[tuple[int, int], Value] = {}
            for rank, _, addend in layout.joined().held(self.graph.tensors[loss].shape):
                end = len(self.lists[rank])
                have = self._read(rank, end, buffer)
                if have is None:
                    continue
                if addends.setdefault(addend, have) != have:
                    self._find(rank, end, "I1", f"holds another {_named(buffer)} than a copy of it")
            if len(addends) == (1 if not layout.partial else next(iter(addends))[1] if addends else -1):
                total = added(tuple(addends[key] for key in sorted(addends)), layout.reduction)
                want = tuple(entry._replace(micro_batch=micro_batch) for entry in whole)
                if isinstance(total, Conflict):
                    self._find(-1, -1, total.invariant, f"the loss of micro-batch {micro_batch} {total.message}")
                elif total.tensor != loss or total.regions[0].content != want:
                    said = difference(total.regions[0].content, want) if total.tensor == loss else f"is {named(total)}"
                    self._find(-1, -1, "I1", f"the loss of micro-batch {micro_batch} {said}")

    def _weights(self) -> None:
        trained = set(self.truth.trained)
        for tensor, layout in self.program.weights.items():
            content = self.truth.value(tensor, LASTING, 1 if tensor in trained else 0)
            for rank in layout.mesh.devices:
                if rank in self.lists:
                    want = self._of_layout(tensor, layout, rank, content)
                    self._expect(rank, len(self.lists[rank]), Buffer(tensor, "value"), want)
        for tensor in self.graph.parameters:
            if tensor not in self.program.weights:
                self._find(-1, -1, "I4", f"does not say where the weight {tensor!r} is kept")

    def _coverage(self) -> None:
        for op in self.graph.ops:
            if op.name not in self.truth.reaching:
                continue
            domain = extent([op.annotation.sizes[name] for name in sorted(op.annotation.sizes)])
            for micro_batch in self.micro_batches:
                boxes = tuple(sorted(self.computed.get((op.name, micro_batch), ())))
                if not boxes or not covers(boxes, domain):
                    done = "not at all" if not boxes else "only over " + " and ".join(map(written, boxes[:4]))
                    message = f"operator {op.name!r} is computed {done} for micro-batch {micro_batch}"
                    self._find(-1, -1, "I4", message)

    def _remains(self) -> None:
        lasting = {Buffer(tensor, "value") for tensor in self.program.weights}
        kept = lasting | set(self.program.losses)
        for rank, held in self.held.items():
            end = len(self.lists[rank])
            for buffer in held:
                constant = buffer.kind == "value" and self.graph.tensors[buffer.tensor].role == "buffer"
                if buffer not in kept and not constant:
                    self._find(rank, end, "I11", f"never frees {_named(buffer)}")
            for run, micro_batch in self.saved[rank]:
                message = f"keeps what run {run} saved for micro-batch {micro_batch}, and has no backward pass for it"
                self._find(rank, end, "I11", message)

    def _find(self, rank: int, index: int, invariant: str, message: str) -> None:
        self.findings.append(Finding(1, rank, index, invariant, message))


def _collected(step: Collective, number: int, values: tuple[Value, ...]) -> Value | Conflict:
    """What the number-th member has after a collective, from what each member gives."""
    n = len(values)
    match step.kind:
        case "all-reduce":
            return added(values, step.reduction)
        case "all-gather":
            if not 0 <= step.dim < len(values[0].shape):
                return Conflict("schema", f"gathers dim {step.dim} of {named(values[0])}, of shape {values[0].shape}")
            return joined(values, step.dim)
        case "reduce-scatter":
            total = added(values, step.reduction)
            return total if isinstance(total, Conflict) else _chunk(total, step.dim, number, n)
        case _:
            pieces = [_chunk(value, step.split, number, n) for value in values]
            for piece in pieces:
                if isinstance(piece, Conflict):
                    return piece
            if not 0 <= step.dim < len(values[0].shape):
                return Conflict("schema", f"gathers dim {step.dim} of {named(values[0])}, of shape {values[0].shape}")
            return joined(tuple(pieces), step.dim)  # type: ignore[arg-type]


def _chunk(value: Value, dim: int, number: int, count: int) -> Value | Conflict:
    if not 0 <= dim < len(value.shape) or value.shape[dim] % count:
        return Conflict("schema", f"divides dim {dim} of {named(value)}, of shape {value.shape}, into {count} parts")
    length = value.shape[dim] // count
    box = list(extent(value.shape))
    box[dim] = (number * length, (number + 1) * length)
    return sliced(value, tuple(box))


def _named(buffer: Buffer | None) -> str:
    """A buffer, for people."""
    if buffer is None:
        return "nothing"
    kind = {"value": "", "gradient": "the gradient of ", "state": "the state of "}[buffer.kind]
    variant = f" ({buffer.variant})" if buffer.variant else ""
    when = f" of micro-batch {buffer.micro_batch}" if buffer.micro_batch != LASTING else ""
    return f"{kind}{buffer.tensor!r}{variant}{when}"
