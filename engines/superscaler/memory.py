"""Device memory over a step, from a program's actions alone: what is held when, by which stage, and for what.

A device holds its parts of the weights and of the optimizer's state all the time; the sum of a weight's gradients from
the first micro-batch that adds to it; values and gradients from the action that writes them to the one that frees them;
and between a forward pass and its backward pass what autograd keeps: what a run reads and the tensors that `Work.saved`
names, each once, however many operators read it and whether or not it is a value as well. (Weights are not kept by a
pass, see `program.Compute`.) While a run computes, it holds its inner tensors, or their gradients, as well: the
*moment* is the most of that beyond what stays.

Nothing here knows when things happen; their order is enough. Devices that take part in the same meshes hold the same.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from emulation import layout
from emulation.units import render
from engines.superscaler.cluster import model_of
from engines.superscaler.emulate.kernels import Kernels, degrees_of
from engines.superscaler.precision import Precision
from engines.superscaler.program import (
    LASTING,
    Accumulate,
    Add,
    Buffer,
    Compute,
    Free,
    Load,
    Move,
    Seed,
    Transfer,
    Update,
)
from engines.superscaler.sizes import Sizes
from harness.api import PlanError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from emulation.processors import DeviceModel
    from emulation.profile import Profile
    from engines.superscaler.graph import Op
    from engines.superscaler.layout import Layout, Mesh
    from engines.superscaler.plan import Block
    from engines.superscaler.program import Action, Program, Run

Category = Literal["weights", "gradients", "optimizer", "activations", "moment"]
CATEGORIES: tuple[Category, ...] = ("weights", "gradients", "optimizer", "activations", "moment")


@dataclass(frozen=True)
class Held:
    """What a device holds at one moment."""

    total: int
    by: Mapping[Category, int]
    """Bytes of each category; they add up to the total."""
    block: Block | None
    """During which it is held."""


@dataclass(frozen=True)
class DeviceMemory:
    """Memory of devices that hold the same over a step."""

    devices: tuple[int, ...]
    peak: Held
    lasting: int
    """What they hold between steps."""
    curve: tuple[tuple[int, int, int], ...]
    """(section of the program, most held during it, held after it), of the sections that the devices take part in."""


def over_step(program: Program, precision: Precision | None = None) -> tuple[DeviceMemory, ...]:
    """Memory of all devices over a step, by the number of the first."""
    return _Walk(program, precision or Precision()).go()


def peak(program: Program, precision: Precision | None = None) -> dict[int, Held]:
    """The most that every device holds at once."""
    return {device: one.peak for one in over_step(program, precision) for device in one.devices}


def check(program: Program, profile: Profile, precision: Precision | None = None) -> tuple[DeviceMemory, ...]:
    """Memory over a step, if every device has as much.

    Raises:
        PlanError: one has not; names the stage, and says how much it lacks and what could be done.
    """
    found = over_step(program, precision)
    there = layout.devices(profile) or layout.processors(profile)
    worst, lack = None, 0
    for one in found:
        for device in one.devices[:1]:
            model = model_of(profile, there[device])
            over = one.peak.total - usable(profile, model)
            if model.kind == "gpu" and over > lack:
                worst, lack = one, over
    if worst is not None:
        raise PlanError(_too_much(program, profile, model_of(profile, there[worst.devices[0]]), worst, lack))
    return found


def usable(profile: Profile, model: DeviceModel) -> int:
    """Bytes of a device that its allocator can use."""
    return int(model.memory.value * (1 - profile.fragmentation.value))


def stage_text(program: Program, number: int) -> str:
    """How messages name a stage: `stage 2 (layers.12 to layers.17)`."""
    stage, ops = program.plan.stages[number], program.graph.by_name
    modules = [found for name in stage.ops if (found := _outer(ops[name].module))]
    span = f"{modules[0]} to {modules[-1]}" if modules and modules[0] != modules[-1] else "".join(modules[:1])
    what = span or stage.name or f"{stage.ops[0]} to {stage.ops[-1]}"
    return f"stage {number} ({what})"


def _outer(module: str) -> str:
    """A qualified name up to its first number: `layers.3.attention.qkv` -> `layers.3`."""
    words = module.split(".")
    number = next((place for place, word in enumerate(words) if word.isdigit()), len(words) - 1)
    return ".".join(words[: number + 1])


_WORDS: Mapping[Category, str] = {
    "weights": "of weights",
    "gradients": "of gradients",
    "optimizer": "of optimizer state",
    "activations": "of activations",
    "moment": "for a moment",
}
_ADVICE: Mapping[Category, str] = {
    "weights": "raise the number of stages or the tensor split, or keep weights split (ZeRO-3)",
    "gradients": "raise the number of stages or the tensor split, or keep gradients split (ZeRO-2)",
    "optimizer": "split the optimizer's state over replicas (ZeRO-1), or raise the number of stages",
    "activations": "recompute or co-shard the stage, use smaller micro-batches, or an order with fewer in flight",
    "moment": "use smaller micro-batches, split the largest operator further, or co-shard it",
}


def _too_much(program: Program, profile: Profile, model: DeviceModel, one: DeviceMemory, lack: int) -> str:
    held = one.peak
    number = held.block.stage if held.block else _home(program, one.devices[0])
    parts = ", ".join(f"{render(held.by[name], 'B')} {_WORDS[name]}" for name in CATEGORIES if held.by.get(name))
    largest = max(CATEGORIES, key=lambda name: held.by.get(name, 0))
    each = "on its device" if len(one.devices) == 1 else f"on each of {len(one.devices)} devices"
    return (
        f"{stage_text(program, number)} needs {render(held.total, 'B')} {each} ({parts}), "
        f"{render(usable(profile, model), 'B')} of {render(int(model.memory.value), 'B')} are usable: "
        f"{render(lack, 'B')} too much; {_ADVICE[largest]}"
    )


def _home(program: Program, device: int) -> int:
    """The stage with the most operators of those that a device works for."""
    stages = program.plan.stages
    return max((n for n, s in enumerate(stages) if device in s.mesh.places), key=lambda n: (len(stages[n].ops), -n))


# --- what a run needs for a moment, and what it keeps -----------------------------------------------------------------


@dataclass(frozen=True)
class _Pass:
    """What a pass of a run holds, beyond what was there before it."""

    during: int
    """Most bytes of its inner tensors, of those it keeps and of what it yields."""
    inputs: tuple[tuple[str, str], ...] = ()
    """(tensor, variant) of those of its inputs that it keeps."""
    outputs: tuple[tuple[str, str], ...] = ()
    """Of its outputs that it keeps."""
    inner: int = 0
    """Bytes of what it keeps and nobody else has."""


class _Runs:
    """Computes that for every run and pass once."""

    def __init__(self, program: Program, precision: Precision) -> None:
        self._kernels = Kernels(program, precision)
        self._graph = program.graph
        self._runs = {run.number: run for run in program.runs}
        self._known: dict[tuple[int, str, bool], _Pass] = {}

    def of(self, run: int, what: str, *, saved: bool) -> _Pass:
        key = (run, what, saved)
        if key not in self._known:
            found = self._runs[run]
            # A co-sharded run keeps its inputs alone, and does each part forward again.
            kept = saved and found.mesh.sequential == 1
            self._known[key] = self._forward(found, kept, saved) if what == "forward" else self._backward(found, what)
        return self._known[key]

    def _forward(self, run: Run, keeps: bool, saved: bool) -> _Pass:
        roots, sizes = self._roots(run)
        inputs = {name: (name, variant) for name, variant, _ in run.inputs}
        outputs = {roots.get(name, name): (name, variant) for name, variant, _ in run.outputs}
        kept, extra = self._kept(run, roots) if keeps else (set(), 0)
        if saved:
            # The runtime differentiates with respect to the inputs, so it has them until then.
            kept |= set(inputs)
        last: dict[str, int] = {}
        for place, op in enumerate(ops := self._ops(run)):
            last |= dict.fromkeys((roots.get(name, name) for name in (*op.inputs, *op.outputs)), place)
        held = most = 0
        for place, op in enumerate(ops):
            work = self._kernels.work(run, op)
            made = {roots.get(name, name) for name in op.outputs} - set(inputs)
            held += sum(sizes[name] for name in made if name not in inputs and name in op.outputs)
            held += work.saved_extra if keeps else 0
            most = max(most, held + work.workspace + (0 if keeps else work.saved_extra))
            ended = [name for name, end in last.items() if end == place and name in sizes and name not in inputs]
            held -= sum(sizes[name] for name in ended if name not in kept and name not in outputs)
        if run.mesh.sequential > 1:
            most += sum(sizes[name] for name in outputs if name in sizes) * run.mesh.sequential
        weights = {name for name in inputs if self._graph.tensors[name].role in ("parameter", "buffer")}
        return _Pass(
            most,
            tuple(sorted(inputs[name] for name in kept & set(inputs) - weights)),
            tuple(sorted(outputs[name] for name in kept & set(outputs) - set(inputs))),
            sum(sizes[name] for name in kept - set(inputs) - set(outputs)) + extra,
        )

    def _backward(self, run: Run, what: str) -> _Pass:
        """The gradients of inner tensors, from the last operator to the first; what was kept is there besides."""
        roots, sizes = self._roots(run)
        again = self._forward(run, True, True) if run.mesh.sequential > 1 else None
        held = most = 0
        there: dict[str, int] = {}
        for op in reversed(self._ops(run)):
            work = self._kernels.work(run, op)
            for name in op.inputs:
                root = roots.get(name, name)
                if self._graph.tensors[name].requires_grad and root not in there:
                    # The gradient of an input is like the input.
                    there[root] = sizes[root] if root in sizes else self._local(run, op, name)
                    held += there[root]
            most = max(most, held + work.workspace)
            for name in op.outputs:
                if name not in roots:
                    held -= there.pop(name, 0)
        if again is not None:
            most += again.inner + again.during
        return _Pass(most if what != "weights" else 0)

    def _ops(self, run: Run) -> list[Op]:
        return [self._graph.by_name[name] for name in run.ops]

    def _roots(self, run: Run) -> tuple[dict[str, str], dict[str, int]]:
        """What views are views of, and bytes of every tensor that a run makes on one device (and part)."""
        roots: dict[str, str] = {}
        sizes: dict[str, int] = {}
        for op in self._ops(run):
            work = self._kernels.work(run, op)
            view = not work.flops and not work.nbytes and op.inputs
            for name in op.outputs:
                if view:
                    roots[name] = roots.get(op.inputs[0], op.inputs[0])
                else:
                    sizes[name] = self._local(run, op, name)
        return roots, sizes

    def _kept(self, run: Run, roots: Mapping[str, str]) -> tuple[set[str], int]:
        kept, extra = set(), 0
        for op in self._ops(run):
            if any(self._graph.tensors[name].requires_grad for name in op.outputs):
                work = self._kernels.work(run, op)
                kept |= {roots.get(name, name) for name in work.saved}
                extra += work.saved_extra
        return {name for name in kept if self._graph.tensors[name].role not in ("parameter", "buffer")}, extra

    def _local(self, run: Run, op: Op, name: str) -> int:
        """Bytes of an operator's tensor, in one part."""
        tensor, degrees = self._kernels.tensors[name], degrees_of(run, op)
        dims = op.annotation.outputs[op.outputs.index(name)] if name in op.outputs else None
        dims = op.annotation.inputs[op.inputs.index(name)] if dims is None else dims
        parts = math.prod(degrees.get(dim[0], 1) for dim in dims if dim)
        return tensor.nbytes // parts


# --- the walk ---------------------------------------------------------------------------------------------------------


@dataclass
class _Storage:
    """Bytes under one or more names."""

    nbytes: int
    category: Category
    names: int = 1


@dataclass
class _Device:
    """Devices that hold the same."""

    devices: tuple[int, ...]
    held: dict[Buffer, _Storage] = field(default_factory=dict)
    kept: dict[tuple[int, int], list[_Storage]] = field(default_factory=dict)
    by: Counter[Category] = field(default_factory=Counter)
    total: int = 0
    most: int = 0
    """During the section."""
    peak: Held = field(default_factory=lambda: Held(0, {}, None))
    lasting: int = 0
    curve: list[tuple[int, int, int]] = field(default_factory=list)

    def add(self, nbytes: int, category: Category) -> _Storage:
        """Take memory."""
        self.by[category] += nbytes
        self.total += nbytes
        return _Storage(nbytes, category)

    def write(self, buffer: Buffer, nbytes: int, category: Category) -> None:
        """A buffer with memory of its own."""
        self.free(buffer)
        self.held[buffer] = self.add(nbytes, category)

    def alias(self, buffer: Buffer, source: Buffer, category: Category) -> None:
        """Another name of what is there."""
        storage = self.held[source]
        if storage.category != category:
            self.by[storage.category] -= storage.nbytes
            self.by[category] += storage.nbytes
            storage.category = category
        storage.names += 1
        self.held[buffer] = storage

    def free(self, buffer: Buffer) -> None:
        """Forget a name, and give back what has none left."""
        storage = self.held.pop(buffer, None)
        if storage is not None:
            self.drop(storage)

    def drop(self, storage: _Storage) -> None:
        """One name less."""
        storage.names -= 1
        if not storage.names:
            self.by[storage.category] -= storage.nbytes
            self.total -= storage.nbytes

    def mark(self, block: Block | None, moment: int = 0) -> None:
        """Note what is held now, with `moment` more."""
        total = self.total + moment
        self.most = max(self.most, total)
        if total > self.peak.total:
            self.peak = Held(total, {**+self.by, "moment": moment}, block)


class _Walk:
    """Carries out the actions of a program on sizes."""

    def __init__(self, program: Program, precision: Precision) -> None:
        self._program = program
        self._precision = precision
        self._sizes = Sizes(program, precision)
        self._runs = _Runs(program, precision)
        self._by_number = {run.number: run for run in program.runs}
        self._roles = {name: tensor.role for name, tensor in program.graph.tensors.items()}
        self._groups = [_Device(devices) for devices in _alike(program)]
        self._of: dict[tuple[int, ...], list[_Device]] = {}
        for tensor, where in program.weights.items():
            nbytes = self._nbytes(tensor, where)
            for device in self._on(where.mesh):
                device.held[Buffer(tensor, "value")] = device.add(nbytes, "weights")
        for tensor, where in program.states.items():
            full = program.graph.tensors[tensor]
            numbers = self._sizes.numbers(where, full.shape)
            for device in self._on(where.mesh):
                device.add(numbers * precision.state_bytes(full.dtype), "optimizer")

    def go(self) -> tuple[DeviceMemory, ...]:
        for device in self._groups:
            device.mark(None)
            device.lasting = device.total
        for number, section in enumerate(self._program.sections):
            touched: dict[int, _Device] = {}
            for device in self._groups:
                device.most = device.total
            for action in section.actions:
                self._sizes.learn(action)
                for mesh in _meshes(action, self._by_number):
                    for device in self._on(mesh):
                        self._act(device, action, section.block)
                        touched[id(device)] = device
            for device in touched.values():
                device.curve.append((number, device.most, device.total))
        return tuple(DeviceMemory(d.devices, d.peak, d.lasting, tuple(d.curve)) for d in self._groups)

    def _act(self, device: _Device, action: Action, block: Block | None) -> None:
        match action:
            case Compute():
                self._compute(device, action, block)
                return
            case Move() | Transfer() | Load() | Seed() | Add():
                device.write(action.target, self._sizes.nbytes(action.target), self._category(action.target))
            case Accumulate() if action.target not in device.held:
                device.alias(action.target, action.source, "gradients")
            case Free():
                for buffer in action.buffers:
                    device.free(buffer)
                return
            case Accumulate() | Update():
                pass
        device.mark(block)

    def _compute(self, device: _Device, action: Compute, block: Block | None) -> None:
        run, micro_batch = self._by_number[action.run], action.micro_batch
        needs = self._runs.of(action.run, action.what, saved=action.saved)
        device.mark(block, needs.during)
        if action.what == "forward":
            for tensor, variant, _ in run.outputs:
                buffer = Buffer(tensor, "value", variant, micro_batch)
                device.write(buffer, self._sizes.nbytes(buffer), "activations")
            if action.saved:
                device.kept[action.run, micro_batch] = self._keep(device, needs, micro_batch)
        else:
            for tensor, variant, _ in run.gradients:
                weight = self._roles[tensor] == "parameter"
                if (action.what == "inputs" and weight) or (action.what == "weights" and not weight):
                    continue
                buffer = Buffer(tensor, "gradient", variant, micro_batch)
                device.write(buffer, self._sizes.nbytes(buffer), "activations")
            if action.what != "inputs":
                for storage in device.kept.pop((action.run, micro_batch), ()):
                    device.drop(storage)
        device.mark(block)

    def _keep(self, device: _Device, needs: _Pass, micro_batch: int) -> list[_Storage]:
        kept = []
        for tensor, variant in (*needs.inputs, *needs.outputs):
            own, lasting = Buffer(tensor, "value", variant, micro_batch), Buffer(tensor, "value", variant)
            storage = device.held.get(own) or device.held.get(lasting)
            if storage is not None:
                storage.names += 1
                kept.append(storage)
        if needs.inner:
            kept.append(device.add(needs.inner, "activations"))
        return kept

    def _category(self, buffer: Buffer) -> Category:
        if self._roles[buffer.tensor] != "parameter":
            return "activations"
        if buffer.kind == "value":
            return "weights"
        return "gradients" if buffer.micro_batch == LASTING else "activations"

    def _nbytes(self, tensor: str, where: Layout) -> int:
        full = self._program.graph.tensors[tensor]
        return self._sizes.numbers(where, full.shape) * self._precision.nbytes(full.dtype)

    def _on(self, mesh: Mesh) -> list[_Device]:
        key = mesh.devices
        if key not in self._of:
            own = set(key)
            self._of[key] = [device for device in self._groups if device.devices[0] in own]
        return self._of[key]


def _alike(program: Program) -> list[tuple[int, ...]]:
    """Devices by the meshes that they are in."""
    sets = dict.fromkeys(stage.mesh.devices for stage in program.plan.stages)
    members = [frozenset(devices) for devices in sets]
    found: dict[tuple[int, ...], list[int]] = {}
    for device in program.plan.devices:
        found.setdefault(tuple(n for n, own in enumerate(members) if device in own), []).append(device)
    return sorted(tuple(devices) for devices in found.values())


def _meshes(action: Action, runs: Mapping[int, Run]) -> Iterator[Mesh]:
    """Whose devices an action changes the memory of."""
    if isinstance(action, Compute):
        yield runs[action.run].mesh
    elif isinstance(action, Transfer):
        yield action.after.mesh
    else:
        yield action.mesh
