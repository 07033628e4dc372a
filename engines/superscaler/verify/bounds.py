"""Level 0: does everything that is named exist, and does it fit?

What this level lets pass can be interpreted without surprises: every run, operator, tensor, rank, dim and box is there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engines.superscaler.graph import BYTES
from engines.superscaler.program import LASTING, Buffer, Collective, Exchange, Local, RunPart
from engines.superscaler.verify.findings import Finding
from engines.superscaler.verify.values import size, within, written

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from engines.superscaler.layout import Layout, Mesh
    from engines.superscaler.program import Instruction, Program, Run
    from engines.superscaler.verify.rendezvous import Lists

ARITY = {
    # kind: (sources, targets), None for any number but zero
    "load": (0, 1),
    "slice": (1, 1),
    "mask": (1, 1),
    "add": (None, 1),
    "seed": (0, 1),
    "accumulate": (1, 1),
    "update": (2, 1),
}


def check(program: Program, lists: Lists) -> tuple[Finding, ...]:
    """All that does not exist or does not fit."""
    bounds = _Bounds(program, lists)
    findings = [Finding(0, -1, -1, "schema", message) for message in bounds.program_at_fault()]
    for rank in sorted(lists):
        findings.extend(bounds.rank_at_fault(rank, lists[rank]))
    return tuple(sorted(set(findings)))


class _Bounds:
    def __init__(self, program: Program, lists: Lists) -> None:
        self.program, self.lists = program, lists
        self.graph = program.graph
        self.runs = {run.number: run for run in program.runs}
        self.sound: dict[Buffer, str] = {}

    # --- the program's own tables ----------------------------------------------------------------------------------

    def program_at_fault(self) -> Iterator[str]:
        """Messages."""
        if len(self.runs) != len(self.program.runs):
            yield "two runs have one number"
        for run in self.program.runs:
            for message in self._run(run):
                yield f"run {run.number}: {message}"
        for what, table in (("weight", self.program.weights), ("state of", self.program.states)):
            for tensor, layout in table.items():
                if tensor not in self.graph.parameters:
                    yield f"{what} {tensor!r} is no parameter of the graph"
                else:
                    yield from (f"{what} {tensor!r}: {message}" for message in self._layout(tensor, layout))
        for device in self.program.plan.devices:
            if device not in self.lists:
                yield f"rank {device} has no instructions"
        if self.program.loss_layout is not None:
            yield from self._layout(self.graph.loss, self.program.loss_layout)
            for device in self.program.loss_layout.mesh.devices:
                if device not in self.lists:
                    yield f"the loss is to be on rank {device}, which has no instructions"

    def _run(self, run: Run) -> Iterator[str]:
        sides = (("reads", run.inputs), ("yields", run.outputs), ("yields the gradient of", run.gradients))
        for what, entries in sides:
            for tensor, _, layout in entries:
                if tensor not in self.graph.tensors:
                    yield f"{what} {tensor!r}, which the graph does not have"
                else:
                    yield from (f"{tensor!r}: {message}" for message in self._layout(tensor, layout))
            names = [tensor for tensor, _, _ in entries]
            if len(set(names)) < len(names):
                yield f"{what} one tensor in two layouts"
        for tensor in run.gradient_outputs:
            if tensor not in {name for name, _, _ in run.outputs}:
                yield f"is given the gradient of {tensor!r}, which is no output of it"
        degrees = (*run.mesh.shape, run.mesh.sequential) if run.mesh.sequential > 1 else run.mesh.shape
        for name in run.ops:
            if name not in self.graph.by_name:
                yield f"computes {name!r}, which the graph does not have"
            else:
                yield from self._split(name, run.splits.get(name), degrees)
        if len(set(run.ops)) < len(run.ops):
            yield "computes one operator twice"

    def _split(self, name: str, split: Sequence[str] | None, degrees: Sequence[int]) -> Iterator[str]:
        if split is None or len(split) != len(degrees):
            yield f"does not say for each of {len(degrees)} axes how {name!r} is split"
            return
        annotation = self.graph.by_name[name].annotation
        parts: dict[str, int] = {}
        for identifier, degree in zip(split, degrees, strict=True):
            if identifier and degree > 1:
                parts[identifier] = parts.get(identifier, 1) * degree
        for identifier, count in parts.items():
            if identifier not in annotation.splittable():
                yield f"splits {name!r} on {identifier!r}, which cannot be split"
            elif annotation.sizes[identifier] % count:
                length = annotation.sizes[identifier]
                yield f"splits {identifier!r} of {name!r}, of size {length}, into {count} parts"

    def _layout(self, tensor: str, layout: Layout) -> Iterator[str]:
        shape = self.graph.tensors[tensor].shape
        if len(layout.dims) != len(shape):
            yield f"a layout of {len(layout.dims)} dims for a tensor of {len(shape)}"
            return
        axes = [axis for dim in layout.dims for axis in dim] + list(layout.partial)
        if len(set(axes)) < len(axes):
            yield f"a layout that uses a mesh axis twice: {layout.dims}, partial {layout.partial}"
        elif any(not 0 <= axis <= len(layout.mesh.shape) for axis in axes):
            yield f"a layout with an axis that its mesh does not have: {layout.dims}, partial {layout.partial}"
        else:
            try:
                layout.local_shape(shape)
            except ValueError as error:
                yield str(error)

    # --- a rank's instructions -------------------------------------------------------------------------------------

    def rank_at_fault(self, rank: int, own: Sequence[Instruction]) -> Iterator[Finding]:
        """Findings of a rank."""
        tags: dict[int, int] = {}
        for index, step in enumerate(own):
            for invariant, message in self._instruction(rank, step):
                yield Finding(0, rank, index, invariant, message)
            if isinstance(step, Exchange):
                if step.tag in tags:
                    message = f"exchange has the tag {step.tag} of instruction {tags[step.tag]}"
                    yield Finding(0, rank, index, "schema", message)
                tags.setdefault(step.tag, index)

    def _instruction(self, rank: int, step: Instruction) -> Iterator[tuple[str, str]]:
        if isinstance(step, RunPart):
            yield from self._part(rank, step)
            return
        messages: Iterable[str]
        if isinstance(step, Collective):
            messages = self._collective(rank, step)
        elif isinstance(step, Exchange):
            messages = self._exchange(rank, step)
        elif isinstance(step, Local):
            messages = self._local(step)
        else:
            messages = (f"is no instruction: {step!r}",)
        for message in messages:
            yield "schema", message

    def _part(self, rank: int, step: RunPart) -> Iterator[tuple[str, str]]:
        run = self.runs.get(step.run)
        if run is None:
            yield "schema", f"there is no run {step.run}"
            return
        if not 0 <= step.micro_batch < self.program.plan.micro_batches:
            yield "schema", f"micro-batch {step.micro_batch} of {self.program.plan.micro_batches}"
        if step.what not in ("forward", "backward", "inputs", "weights"):
            yield "schema", f"there is no {step.what!r} of a run"
        fault = _place(rank, run.mesh, step.place)
        if fault:
            yield fault

    def _collective(self, rank: int, step: Collective) -> Iterator[str]:
        if step.kind not in ("all-reduce", "reduce-scatter", "all-gather", "all-to-all"):
            yield f"there is no collective {step.kind!r}"
        if rank not in step.group:
            yield f"is not in the group {list(step.group)} of its {step.kind}"
        if len(set(step.group)) < len(step.group) or len(step.group) < 2:
            yield f"a {step.kind} among {list(step.group)}"
        yield from (f"there is no rank {member}" for member in step.group if member not in self.lists)
        yield from self._buffers((step.source, step.target))
        if step.source.tensor in self.graph.tensors:
            tensor = self.graph.tensors[step.source.tensor]
            if step.dtype not in BYTES:
                yield f"there is no dtype {step.dtype!r}"
            if len(step.shape) != len(tensor.shape):
                yield f"a part of shape {step.shape} of {tensor.name!r}, of shape {tensor.shape}"
            if step.kind != "all-reduce" and not 0 <= step.dim < len(step.shape):
                yield f"{step.kind} along dim {step.dim} of {len(step.shape)}"
            if step.kind == "all-to-all" and (not 0 <= step.split < len(step.shape) or step.split == step.dim):
                yield f"{step.kind} that splits dim {step.split} and gathers dim {step.dim} of {len(step.shape)}"
            scattered = {"reduce-scatter": step.dim, "all-to-all": step.split}.get(step.kind)
            if scattered is not None and 0 <= scattered < len(step.shape) and step.shape[scattered] % len(step.group):
                yield f"{step.kind} divides dim {scattered} of {step.shape} into {len(step.group)} parts"

    def _exchange(self, rank: int, step: Exchange) -> Iterator[str]:
        yield from self._buffers(buffer for buffer in (step.source, step.target) if buffer is not None)
        for piece in (*step.sends, *step.receives):
            if piece.peer == rank or piece.peer not in self.lists:
                yield f"exchanges with rank {piece.peer}"
        if step.source is None and (step.sends or step.keeps):
            yield "sends or keeps something without a source"
        if step.target is None and (step.receives or step.keeps):
            yield "receives or keeps something without a target"
        if step.target is not None and not (step.receives or step.keeps):
            yield "makes a target of nothing"
        if step.target is not None:
            for box in (*(piece.box for piece in step.receives), *(target for _, target, _ in step.keeps)):
                if not within(box, step.shape):
                    yield f"writes {written(box)} of a part of shape {step.shape}"
        for source, target, _ in step.keeps:
            if size(source) != size(target):
                yield f"keeps {written(source)} as {written(target)}"

    def _local(self, step: Local) -> Iterator[str]:
        yield from self._buffers((*step.sources, *step.targets))
        if step.kind == "free":
            if not (step.sources or step.targets):
                yield "frees nothing"
            return
        if step.kind not in ARITY:
            yield f"there is no {step.kind!r}"
            return
        sources, targets = ARITY[step.kind]
        if (
            len(step.targets) != targets
            or (sources is None and not step.sources)
            or (sources is not None and len(step.sources) != sources)
        ):
            yield f"{step.kind} of {len(step.sources)} sources to {len(step.targets)} targets"
            return
        tensor = self.graph.tensors.get(step.targets[0].tensor)
        if step.kind == "load" and tensor is not None:
            if tensor.role not in ("input", "buffer"):
                yield f"loads {tensor.name!r}, which is no input"
            if len(step.box) != len(tensor.shape) or not within(step.box, tensor.shape):
                yield f"loads {written(step.box)} of {tensor.name!r}, of shape {tensor.shape}"
        if step.kind == "slice" and tensor is not None and len(step.box) != len(tensor.shape):
            yield f"takes {written(step.box)} of {tensor.name!r}, of shape {tensor.shape}"
        if step.kind == "update" and (tensor is None or tensor.role != "parameter"):
            yield f"updates {step.targets[0].tensor!r}, which is no parameter"
        if step.kind == "update" and step.sources[0] != step.targets[0]:
            yield f"updates {step.targets[0].tensor!r} from {step.sources[0].tensor!r}: it is done in place"
        if step.kind == "seed" and step.targets[0][:2] != (self.graph.loss, "gradient"):
            yield f"starts the backward pass at {step.targets[0].tensor!r}, the loss is {self.graph.loss!r}"

    def _buffers(self, buffers: Iterable[Buffer]) -> Iterator[str]:
        for buffer in buffers:
            if buffer not in self.sound:
                self.sound[buffer] = self._buffer(buffer)
            if self.sound[buffer]:
                yield self.sound[buffer]

    def _buffer(self, buffer: Buffer) -> str:
        if buffer.tensor not in self.graph.tensors:
            return f"the graph has no tensor {buffer.tensor!r}"
        if not LASTING <= buffer.micro_batch < self.program.plan.micro_batches:
            return f"micro-batch {buffer.micro_batch} of {self.program.plan.micro_batches}"
        if buffer.kind not in ("value", "gradient", "state"):
            return f"there is no kind {buffer.kind!r} of buffers"
        return ""


def _place(rank: int, mesh: Mesh, place: tuple[int, ...]) -> tuple[str, str] | None:
    if len(place) != len(mesh.shape) or any(not 0 <= c < n for c, n in zip(place, mesh.shape, strict=True)):
        return "schema", f"the place {place} in a mesh of {mesh.shape}"
    where = mesh.places.get(rank)
    if where is None:
        return "I4", f"computes a run of the ranks {list(mesh.devices)}"
    if where != place:
        return "I4", f"computes the part at {place}, its own is at {where}"
    return None
