"""One rank: its values, and how it carries out its instruction list.

`Rank.step` is a generator: it does what is local by itself and yields every communication, so that whoever drives it
decides how bytes move: `lockstep` runs all ranks in one process, `distributed` one rank in a process group. Drivers
read `Rank.read(source)`, and put what arrives into `Rank.values[target]`, either a tensor or, for what is still under
way, a `Pending`.
"""

from __future__ import annotations

import bisect
import itertools
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Protocol

import torch

from engines.superscaler.effects import value
from engines.superscaler.operators import context
from engines.superscaler.program import LASTING, Buffer, Collective, Exchange, Local, RunPart
from engines.superscaler.runtime.communication import slices
from engines.superscaler.runtime.ledger import Ledger
from engines.superscaler.runtime.routine import Routine, Saved
from harness.api import HarnessError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from torch import Tensor

    from engines.superscaler.program import Instruction, Program, Run
    from engines.superscaler.runtime.optimizer import Optimizer
    from engines.superscaler.runtime.routine import Half

FLOATS = {torch.float64: "fp64", torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
"""Dtypes to compute in, by the names that graphs have for them."""


class Pending(Protocol):
    """A value that is still on its way."""

    def wait(self) -> Tensor:
        """The value, once it is there."""


class Rank:
    """One rank of a program."""

    def __init__(
        self,
        program: Program,
        rank: int,
        instructions: Sequence[Instruction],
        optimizer: Optimizer,
        *,
        dtype: torch.dtype = torch.float64,
        device: str | torch.device = "cpu",
        seed: int = 0,
        observed: bool = False,
    ) -> None:
        """Compile the list.

        Args:
            program: What the list is a projection of.
            rank: This rank.
            instructions: Its list.
            optimizer: Carries out `update`.
            dtype: Of the values, the graph's floating point dtypes notwithstanding.
            device: Where its values lie.
            seed: Of random masks.
            observed: Keep the gradients that `update` uses, and count the bytes of live values after every instruction
                (`gradients`, `peak`): for proofs, not for speed.

        Raises:
            HarnessError: a run reads what is not there.
        """
        self.program, self.rank, self.instructions = program, rank, tuple(instructions)
        self.device = torch.device(device)
        self.values: dict[Buffer, Tensor | Pending] = {}
        self.gradients: dict[str, Tensor] = {}
        """Gradients that the last step's updates used; of an observed rank."""
        self.peak = 0
        """Most bytes of live values: buffers, what autograd keeps, optimizer state; of an observed rank."""
        self.at = 0
        """Number of the instruction that it is doing, or waiting in."""
        self.dtype, self._seed, self._observed = dtype, seed, observed
        self._floats = FLOATS[dtype]
        self._step = 0
        self._batch: Sequence[Mapping[str, Tensor]] = ()
        self._constants: dict[str, Tensor] = {}
        self._saved: dict[tuple[int, int], Saved] = {}
        self._ledger = Ledger() if observed else None
        self._states = 0
        """Bytes of optimizer state."""
        updated = {i.targets[0].tensor: None for i in self.instructions if isinstance(i, Local) and i.kind == "update"}
        self._updates = optimizer.updates(tuple(updated), dtype, self.device)
        self._compiled = self._compile()

    # --- what is on the rank ---------------------------------------------------------------------------------------

    def place(self, parameters: Mapping[str, Tensor], constants: Mapping[str, Tensor]) -> None:
        """Take this rank's parts of the parameters, given whole, and remember the model's buffers."""
        for tensor, layout in self.program.weights.items():
            if self.rank in layout.mesh.places:
                box = layout.box(self.program.graph.tensors[tensor].shape, self.rank)
                part = parameters[tensor].detach()[tuple(slice(*side) for side in box)]
                self._put(Buffer(tensor, "value"), part.to(self.device, copy=True).contiguous())
        self._constants = {name: whole.detach().to(self.device) for name, whole in constants.items()}

    def read(self, buffer: Buffer) -> Tensor:
        """A value; waits for it if it is still on its way.

        Raises:
            HarnessError: it is not there.
        """
        held = self.values.get(buffer)
        if isinstance(held, torch.Tensor):
            return held
        if held is None:
            raise HarnessError(f"rank {self.rank}, instruction {self.at}: reads {describe(buffer)}, which is not there")
        arrived = held.wait()
        self._put(buffer, arrived)
        return arrived

    def parameters(self) -> dict[str, Tensor]:
        """This rank's part of each parameter that it keeps."""
        return {
            t: self.read(Buffer(t, "value")) for t, lay in self.program.weights.items() if self.rank in lay.mesh.places
        }

    def losses(self) -> list[Tensor | None]:
        """What this rank holds of the loss of each micro-batch after a step."""
        return [self.read(buffer) if buffer in self.values else None for buffer in self.program.losses]

    # --- a step ----------------------------------------------------------------------------------------------------

    def step(self, batch: Sequence[Mapping[str, Tensor]]) -> Iterator[Collective | Exchange]:
        """Carry out the list once; yields what is to be communicated."""
        self._batch = batch
        self.gradients = {}
        for number, (instruction, act) in enumerate(self._compiled):
            self.at = number
            if act is None:
                yield instruction  # type: ignore[misc]
                self._note_arrived(instruction)
            else:
                act()
            if self._ledger is not None:
                self.peak = max(self.peak, self._ledger.live + self._states)
        self._batch = ()

    def finish(self) -> None:
        """Forget what does not outlast a step."""
        weights = {Buffer(tensor, "value") for tensor in self.program.weights}
        kept = {buffer: self.read(buffer) for buffer in list(self.values) if buffer in weights}
        self.values.clear()
        self._saved.clear()
        if self._ledger is not None:
            self._ledger.clear()
        for buffer, held in kept.items():
            self._put(buffer, held)
        self._step += 1

    # --- compilation -----------------------------------------------------------------------------------------------

    def _compile(self) -> list[tuple[Instruction, Callable[[], None] | None]]:
        self._backwards: dict[tuple[int, int], list[int]] = {}
        self._changes: dict[Buffer, list[int]] = {}
        for number, instruction in enumerate(self.instructions):
            if not isinstance(instruction, RunPart):
                for buffer in _changed(instruction):
                    self._changes.setdefault(buffer, []).append(number)
            elif instruction.what != "forward":
                self._backwards.setdefault((instruction.run, instruction.micro_batch), []).append(number)
        accumulated: Counter[Buffer] = Counter()
        compiled: list[tuple[Instruction, Callable[[], None] | None]] = []
        routines: dict[tuple[int, tuple[int, ...]], Routine] = {}
        local: dict[str, Callable[[Local], None]] = {
            "load": self._load,
            "slice": self._slice,
            "mask": self._mask,
            "add": self._add,
            "seed": self._start,
            "free": self._free,
        }
        for number, instruction in enumerate(self.instructions):
            act: Callable[[], None] | None = None
            match instruction:
                case RunPart():
                    key = (instruction.run, instruction.place)
                    if key not in routines:
                        routines[key] = Routine(self.program.graph, self._run(instruction.run), instruction.place)
                    act = self._part(routines[key], number, instruction)
                case Local(kind="accumulate", targets=(target,)):
                    act = partial(self._accumulate, instruction.sources[0], target, accumulated[target])
                    accumulated[target] += 1
                case Local(kind="update"):
                    act = self._update_from(number)
                case Local():
                    act = partial(local[instruction.kind], instruction)
            compiled.append((instruction, act))
        return compiled

    def _run(self, number: int) -> Run:
        for run in self.program.runs:
            if run.number == number:
                return run
        raise HarnessError(f"rank {self.rank}: there is no run {number}")

    def _part(self, routine: Routine, number: int, part: RunPart) -> Callable[[], None]:
        graph, run, m = self.program.graph, routine.run, part.micro_batch
        key = (run.number, m)
        reads = tuple(value(graph, tensor, variant, m) for tensor, variant, _ in run.inputs)
        if part.what == "forward":
            writes = tuple(value(graph, tensor, variant, m) for tensor, variant, _ in run.outputs)
            leave = self._leave(number, (reads[place] for place in routine.weights))
            return partial(self._forward, routine, key, reads, writes, part.saved, leave)
        arriving = tuple(
            Buffer(tensor, "gradient", "", m) if tensor in run.gradient_outputs else None
            for tensor, _, _ in run.outputs
        )
        yielded = [run.gradients[place] for place in routine.halves[part.what]]
        writes = tuple(Buffer(tensor, "gradient", variant, m) for tensor, variant, _ in yielded)
        return partial(self._backward, routine, key, reads, arriving, writes, part.what)

    def _leave(self, number: int, reads: Iterable[Buffer]) -> bool:
        """Whether something that a forward pass reads is gone, or another, when its backward pass reads it again."""
        forward = self.instructions[number]
        ends = self._backwards.get((forward.run, forward.micro_batch), [])
        place = bisect.bisect(ends, number)
        end = ends[place] if place < len(ends) else len(self.instructions)
        for buffer in reads:
            changes = self._changes.get(buffer, [])
            place = bisect.bisect(changes, number)
            if place < len(changes) and changes[place] < end:
                return True
        return False

    def _update_from(self, number: int) -> Callable[[], None]:
        """Neighbouring updates are one call of the optimizer, which is made for many tensors at once."""
        if number and _is_update(self.instructions[number - 1]):
            return _nothing
        together = itertools.takewhile(_is_update, self.instructions[number:])
        return partial(self._update, tuple(update.sources for update in together))

    # --- local instructions ----------------------------------------------------------------------------------------

    def _forward(
        self,
        routine: Routine,
        key: tuple[int, int],
        reads: tuple[Buffer, ...],
        writes: tuple[Buffer, ...],
        saved: bool,
        leave: bool,
    ) -> None:
        inputs = tuple(map(self.read, reads))
        noted: list[Tensor] = []
        note = noted.append if self._ledger is not None and saved else None
        with context(seed=self._seed, step=self._step, micro_batch=key[1], floats=self._floats):
            outputs, kept = routine.forward(inputs, saved, leave, note)
        for buffer, made in zip(writes, outputs, strict=True):
            self._put(buffer, made)
        if kept is not None:
            self._saved[key] = kept
            if self._ledger is not None:
                self._ledger.hold(key, (*kept.inputs, *noted))

    def _backward(
        self,
        routine: Routine,
        key: tuple[int, int],
        reads: tuple[Buffer, ...],
        arriving: tuple[Buffer | None, ...],
        writes: tuple[Buffer, ...],
        what: Half,
    ) -> None:
        if routine.parts > 1:
            saved = Saved(tuple(map(self.read, reads)), ())
        elif key in self._saved:
            saved = self._saved[key]
            routine.return_weights(saved, {place: self.read(reads[place]) for place in routine.weights})
        else:
            raise HarnessError(
                f"rank {self.rank}, instruction {self.at}: {what} of run {key[0]} for micro-batch {key[1]} without a"
                " forward pass that was saved"
            )
        if what == "weights":
            gradients = saved.gradients
        else:
            gradients = tuple(None if buffer is None else self.read(buffer) for buffer in arriving)
        with context(seed=self._seed, step=self._step, micro_batch=key[1], floats=self._floats):
            yielded = routine.backward(saved, gradients, what)
        for buffer, made in zip(writes, yielded, strict=True):
            self._put(buffer, made)
        if what != "inputs":
            self._saved.pop(key, None)
            if self._ledger is not None:
                self._ledger.release(key)
                self._ledger.release((*key, "gradients"))
        elif self._ledger is not None:
            self._ledger.hold((*key, "gradients"), (held for held in gradients if held is not None))

    def _load(self, instruction: Local) -> None:
        (target,) = instruction.targets
        whole = self._constants.get(target.tensor)
        if whole is None:
            whole = self._batch[target.micro_batch][target.tensor]
        self._put(target, whole[slices(instruction.box)].to(self.device).contiguous())

    def _slice(self, instruction: Local) -> None:
        part = self.read(instruction.sources[0])[slices(instruction.box)]
        # Its own memory: the whole can be freed, and an update in place stays in the part.
        self._put(instruction.targets[0], part.clone(memory_format=torch.contiguous_format))

    def _mask(self, instruction: Local) -> None:
        copy = self.read(instruction.sources[0])
        self._put(instruction.targets[0], copy if instruction.keep else torch.zeros_like(copy))

    def _add(self, instruction: Local) -> None:
        first, *others = map(self.read, instruction.sources)
        for other in others:
            first = first + other
        self._put(instruction.targets[0], first)

    def _start(self, instruction: Local) -> None:
        (target,) = instruction.targets
        loss = self.program.graph.tensors[target.tensor]
        self._put(target, torch.full(loss.shape, instruction.value, dtype=self.dtype, device=self.device))

    def _accumulate(self, source: Buffer, target: Buffer, earlier: int) -> None:
        own = self.read(source)
        if earlier == 0:
            self._put(target, own)
        elif earlier == 1:
            # The first value is not ours to change: autograd may have handed it to others as well.
            self._put(target, self.read(target) + own)
        else:
            self.read(target).add_(own)

    def _update(self, pairs: tuple[tuple[Buffer, Buffer], ...]) -> None:
        found = [(weight.tensor, self.read(weight), self.read(gradient)) for weight, gradient in pairs]
        if self._observed:
            self.gradients.update({tensor: gradient.clone() for tensor, _, gradient in found})
        self._updates.apply(found)
        if self._ledger is not None:
            self._states = self._updates.nbytes

    def _free(self, instruction: Local) -> None:
        for buffer in (*instruction.sources, *instruction.targets):
            if self.values.pop(buffer, None) is None:
                raise HarnessError(
                    f"rank {self.rank}, instruction {self.at}: frees {describe(buffer)}, which is not there"
                )
            if self._ledger is not None:
                self._ledger.release(buffer)

    # --- accounting ------------------------------------------------------------------------------------------------

    def _put(self, buffer: Buffer, made: Tensor) -> None:
        self.values[buffer] = made
        if self._ledger is not None:
            self._ledger.hold(buffer, (made,))

    def _note_arrived(self, instruction: Collective | Exchange) -> None:
        """What is still on its way is noted when it is first read."""
        if self._ledger is not None and instruction.target is not None:
            arrived = self.values.get(instruction.target)
            if isinstance(arrived, torch.Tensor):
                self._ledger.hold(instruction.target, (arrived,))


def describe(buffer: Buffer) -> str:
    """A buffer in words."""
    of = "" if buffer.micro_batch == LASTING else f" of micro-batch {buffer.micro_batch}"
    variant = f" ({buffer.variant})" if buffer.variant else ""
    return f"the {buffer.kind} of {buffer.tensor!r}{variant}{of}"


def _is_update(instruction: Instruction) -> bool:
    return isinstance(instruction, Local) and instruction.kind == "update"


def _changed(instruction: Instruction) -> tuple[Buffer, ...]:
    """Buffers that are written or freed by what is no run."""
    if isinstance(instruction, Local):
        return (*instruction.targets, *(instruction.sources if instruction.kind == "free" else ()))
    return () if instruction.target is None else (instruction.target,)


def _nothing() -> None:
    """Done by the first of its neighbours."""
