"""A walk over a program's actions that makes a workload of them.

What is assumed of the runtime (and holds for it, on gloo and on NCCL):

* A rank does its computing and its collectives one after another, on one stream: an operator that needs the outcome of
  a collective comes right behind it, and the runtime waits there. Nothing is fetched ahead.
* A message between ranks (a `Transfer`, an `exchange`) begins when both ends have come to it in their lists, because
  that is when gloo and NCCL begin to move bytes. Neither waits for its end: the sender goes on at once, the receiver
  when it comes to the action that reads what was sent. So messages go on beside computing; a device whose profile says
  that it computes more slowly meanwhile does.
* What cuts a view, frees a value or only names it takes no time.

Consecutive actions of a block on the same ranks become one chain, which ends where a rank has to wait for a message or
sends one. What micro-batches have in common is compiled once, into steps that share their parts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from emulation.program import Part
from engines.superscaler.effects import effects
from engines.superscaler.emulate.targets import Message
from engines.superscaler.program import (
    HERE,
    Accumulate,
    Add,
    Buffer,
    Compute,
    Free,
    Load,
    Move,
    Sections,
    Seed,
    Transfer,
    Update,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from engines.superscaler.emulate.kernels import Kernels
    from engines.superscaler.emulate.targets import Target
    from engines.superscaler.layout import Mesh
    from engines.superscaler.plan import Block
    from engines.superscaler.precision import Precision
    from engines.superscaler.program import Action, Program
    from engines.superscaler.sizes import Sizes

COPIES = 2
"""How often what is copied crosses a memory: read and written."""
ADDS = 3
"""How often what is added does: two read, one written."""


class Told(NamedTuple):
    """What a node (or item) is, in the plan's words."""

    block: Block | None
    """None: after the last block, where gradients are reduced and weights updated."""
    text: str
    """`F 3 of encoder`; `transfer of hidden`."""
    devices: tuple[int, ...]
    """That take part."""
    communicates: bool
    """Whether it is a message. (A chain has collectives among its parts.)"""


class _Chain(NamedTuple):
    """A step: what the ranks of a mesh do, once messages have come."""

    ranks: int
    """Number of the set of devices."""
    mesh: Mesh
    parts: tuple[Part, ...]
    waits: tuple[Buffer, ...]


class _Messages(NamedTuple):
    """A step: messages from ranks to ranks."""

    ranks: tuple[int, ...]
    source: Buffer
    target: Buffer
    messages: tuple[Message, ...]
    text: str


class _Freed(NamedTuple):
    """A step: nobody will wait for these."""

    buffers: tuple[Buffer, ...]


_Step = _Chain | _Messages | _Freed


class Lowering:
    """Lowers one program into one target.

    Args:
        program: what is done.
        target: where to.
        kernels: what its runs come to.
        sizes: of its buffers.
        precision: in which numbers.
    """

    def __init__(self, program: Program, target: Target, kernels: Kernels, sizes: Sizes, precision: Precision) -> None:
        self._program, self._target = program, target
        self._compiler = _Compiler(program, target, kernels, sizes, precision)
        self._names = [stage.name or f"stage {number}" for number, stage in enumerate(program.plan.stages)]
        self._last: dict[int, int] = {}
        """Newest chain of each set of ranks."""
        self._arriving: dict[Buffer, tuple[list[int], set[int]]] = {}
        """What messages bring: their handles, and the sets of ranks that have waited for them."""
        self._pending: dict[int, dict[int, None]] = {}
        """Handles that the next chain of a set of ranks has to wait for."""
        self.told: list[Told] = []
        """For each handle."""

    def lower(self) -> None:
        """All sections, in order."""
        sections = self._program.sections
        if isinstance(sections, Sections):
            compiled = [self._compiler.compile(template) for template in sections.templates]
            for block, which in zip(sections.blocks, sections.which, strict=True):
                self._section(block, compiled[which])
            return
        for section in sections:
            self._section(section.block, self._compiler.compile(section.actions))

    def _section(self, block: Block | None, steps: Sequence[_Step]) -> None:
        for step in steps:
            match step:
                case _Chain():
                    self._chain(block, step)
                case _Messages():
                    self._send(block, step)
                case _Freed():
                    for buffer in step.buffers:
                        self._arriving.pop(_at(buffer, block), None)

    def _chain(self, block: Block | None, step: _Chain) -> None:
        after = self._pending.pop(step.ranks, {})
        for buffer in step.waits:
            coming = self._arriving.get(_at(buffer, block))
            if coming is not None and step.ranks not in coming[1]:
                coming[1].add(step.ranks)
                after |= dict.fromkeys(coming[0])
        if not step.parts:
            if after:
                self._pending[step.ranks] = after
            return
        name = f"{block.what} {block.micro_batch}" if block else "update"
        text = f"{name} of {self._names[block.stage]}" if block else name
        self._last[step.ranks] = self._target.chain(step.mesh, step.parts, after, name)
        self.told.append(Told(block, text, step.mesh.devices, communicates=False))

    def _send(self, block: Block | None, step: _Messages) -> None:
        after: dict[int, None] = {}
        for ranks in step.ranks:
            for other in self._compiler.overlapping(ranks):
                if other in self._last:
                    after[self._last[other]] = None
                after |= self._pending.get(other, {})
        source, target = _at(step.source, block), _at(step.target, block)
        after |= dict.fromkeys(self._arriving[source][0] if source in self._arriving else ())
        if not step.messages:
            # Everybody has what it needs already; but what is still to come is waited for under both names.
            if source in self._arriving:
                self._arriving[target] = (list(self._arriving[source][0]), set())
            return
        handles = self._target.messages(step.messages, after, step.text)
        devices = tuple(sorted({end for message in step.messages for end in message[:2]}))
        self.told += [Told(block, step.text, devices, communicates=True)] * len(handles)
        self._arriving[target] = (handles, set())


class _Compiler:
    """Makes steps of actions."""

    def __init__(self, program: Program, target: Target, kernels: Kernels, sizes: Sizes, precision: Precision) -> None:
        self._program, self._target, self._kernels = program, target, kernels
        self._sizes, self._precision = sizes, precision
        self._runs = {run.number: run for run in program.runs}
        self._ranks: dict[tuple[int, ...], int] = {}
        self._overlaps: dict[int, tuple[int, list[int]]] = {}
        self._parts: dict[tuple[object, ...], Part | None] = {}
        self._kept: list[object] = []
        """Objects whose identity is a key, so that they stay."""
        self._chains: dict[tuple[Part, ...], tuple[Part, ...]] = {}
        actions = [action for template in _templates(program) for action in template]
        self._sent = {_nameless(a.target) for a in actions if _is_message(a)}
        """Names of what messages bring."""

    def compile(self, actions: Iterable[Action]) -> list[_Step]:
        """Steps of the actions of one block."""
        steps: list[_Step] = []
        mesh: Mesh | None = None
        parts: list[Part] = []
        waits: dict[Buffer, None] = {}
        waited: set[tuple[tuple[int, ...], Buffer]] = set()
        freed: list[Buffer] = []

        def flush() -> None:
            nonlocal mesh
            if mesh is not None and (parts or waits):
                chain = self._chains.setdefault(tuple(parts), tuple(parts))
                steps.append(_Chain(self.number(mesh), mesh, chain, tuple(waits)))
            mesh = None
            parts.clear()
            waits.clear()

        for action in actions:
            self._sizes.learn(action)
            if isinstance(action, Free):
                freed += [buffer for buffer in action.buffers if _nameless(buffer) in self._sent]
                continue
            if _is_message(action):
                flush()
                steps.append(self._messages(action))
                waited = {(devices, buffer) for devices, buffer in waited if buffer != action.target}
                continue
            here = self._mesh(action)
            reads = effects(action, self._program.graph, self._program.runs).reads
            awaited = [
                buffer for buffer in reads if _nameless(buffer) in self._sent and (here.devices, buffer) not in waited
            ]
            if mesh is None or mesh.devices != here.devices or (awaited and parts):
                flush()
            mesh = mesh or here
            waits |= dict.fromkeys(awaited)
            waited |= {(here.devices, buffer) for buffer in awaited}
            parts += self._made(action)
        flush()
        # What is freed here nobody reads later in the block: it can be forgotten at its end.
        return [*steps, _Freed(tuple(freed))] if freed else steps

    def number(self, mesh: Mesh) -> int:
        """Of the devices of a mesh."""
        return self._ranks.setdefault(mesh.devices, len(self._ranks))

    def overlapping(self, ranks: int) -> list[int]:
        """Numbers of the sets that share a rank with this one, itself included."""
        known = self._overlaps.get(ranks)
        if known is None or known[0] != len(self._ranks):
            sets = list(self._ranks)
            own = set(sets[ranks])
            known = self._overlaps[ranks] = (
                len(sets),
                [n for n, other in enumerate(sets) if not own.isdisjoint(other)],
            )
        return known[1]

    def _mesh(self, action: Action) -> Mesh:
        if isinstance(action, Compute):
            return self._runs[action.run].mesh
        assert not isinstance(action, Transfer)
        return action.mesh

    def _made(self, action: Action) -> tuple[Part, ...]:
        """What an action comes to on a rank."""
        match action:
            case Compute():
                return self._kernels.of(action.run, action.what)
            case Move():
                part = self._move(action)
                return (part,) if part is not None else ()
            case Load():
                return self._moved("layout", COPIES, action.target)
            case Add():
                return self._moved("accumulate", ADDS * (len(action.sources) - 1), action.target)
            case Accumulate():
                return self._moved("accumulate", ADDS, action.target)
            case Seed():
                return self._moved("elementwise", 1, action.target)
            case Update():
                tensor = self._program.graph.tensors[action.weight.tensor]
                numbers = self._sizes.numbers(action.layout, tensor.shape)
                nbytes = numbers * self._precision.update_bytes(tensor.dtype)
                return (self._kernels.moved("optimizer", nbytes, tensor.name),)
        return ()

    def _moved(self, family: str, touches: int, target: Buffer) -> tuple[Part, ...]:
        nbytes = touches * self._sizes.nbytes(target)
        return (self._kernels.moved(family, nbytes, target.tensor),) if nbytes else ()

    def _move(self, action: Move) -> Part | None:
        """The kernel or collective of a step; None if it takes no time."""
        tensor = action.source.tensor
        key = (id(action.before), id(action.after), action.kind, action.axes, action.shape, action.dtype, tensor)
        if key not in self._parts:
            self._kept += [action.before, action.after]
            self._parts[key] = self._step(action)
        return self._parts[key]

    def _step(self, action: Move) -> Part | None:
        size, name = self._precision.nbytes(action.dtype), action.source.tensor
        before = self._sizes.numbers(action.before, action.shape) * size
        if action.kind == "slice":
            return self._kernels.moved("layout", COPIES * self._sizes.numbers(action.after, action.shape) * size, name)
        if action.kind == "mask":
            return self._kernels.moved("elementwise", before, name)
        axes = tuple(axis for axis in action.axes if action.mesh.shape[axis] > 1)
        if not axes or action.kind == "exchange":
            return None
        whole = self._sizes.numbers(action.after, action.shape) * size if action.kind == "all-gather" else before
        return Part.collective(self._target.axes(action.mesh, axes), action.kind, whole, name=name)

    def _messages(self, action: Move | Transfer) -> _Messages:
        size = self._precision.nbytes(action.dtype)
        found = self._sizes.messages(action)
        ranks = tuple(dict.fromkeys(self.number(layout.mesh) for layout in (action.before, action.after)))
        kind = action.kind if isinstance(action, Move) else "transfer"
        what = "gradient of " if action.source.kind == "gradient" else ""
        text = f"{kind} of {what}{action.source.tensor}"
        return _Messages(
            ranks, action.source, action.target, tuple(Message(*ends, n * size) for ends, n in found.items()), text
        )


def _templates(program: Program) -> Iterator[Sequence[Action]]:
    sections = program.sections
    if isinstance(sections, Sections):
        yield from sections.templates
    else:
        yield from (section.actions for section in sections)


def _is_message(action: Action) -> bool:
    return isinstance(action, Transfer) or (isinstance(action, Move) and action.kind == "exchange")


def _nameless(buffer: Buffer) -> tuple[str, str, str]:
    return buffer[:3]


def _at(buffer: Buffer, block: Block | None) -> Buffer:
    """A buffer of a template, for the micro-batch of a block."""
    return buffer._replace(micro_batch=block.micro_batch) if buffer.micro_batch == HERE and block else buffer
