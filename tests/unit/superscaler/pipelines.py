"""Programs made by hand: two-layer stages split over data and tensor axes, as phase 3 makes them."""

from __future__ import annotations

from engines.superscaler import operators
from engines.superscaler.annotation import Annotation
from engines.superscaler.graph import Graph, Op, Tensor
from engines.superscaler.layout import Layout, Mesh
from engines.superscaler.operators import Work
from engines.superscaler.plan import Block, Plan, Stage
from engines.superscaler.program import (
    HERE,
    Accumulate,
    Action,
    Buffer,
    Compute,
    Free,
    Load,
    Move,
    Program,
    Run,
    Section,
    Sections,
    Seed,
    Transfer,
    Update,
)

BATCH, WIDTH, INNER = 8, 64, 128


class Linear:
    """An entry of the operator table, for tests that are not about it."""

    target = "linear"

    def work(self, op: Op, tensors: dict[str, Tensor], degrees: dict[str, int]) -> Work:
        b, k, n = (op.annotation.sizes[name] // degrees.get(name, 1) for name in "bkn")
        nbytes = 4 * (b * k + k * n + b * n)
        return Work(2.0 * b * k * n, nbytes, 4.0 * b * k * n, 2 * nbytes, op.inputs, family="matmul", shape=(b, n, k))


def table(monkeypatch) -> None:
    """Have `operators.find` know `linear` alone."""
    monkeypatch.setattr(operators, "find", lambda target: {"linear": Linear()}[target], raising=False)


def graph(stages: int) -> Graph:
    """Layers up and down, twice as many as stages; the last output counts as the loss."""
    tensors = {"x": Tensor("x", (BATCH, WIDTH), "fp32", "input", False)}
    ops = []
    source = "x"
    for s in range(stages):
        for name, k, n in (("up", WIDTH, INNER), ("down", INNER, WIDTH)):
            weight, out = f"{name}{s}.weight", f"{name}{s}"
            tensors[weight] = Tensor(weight, (n, k), "fp32", "parameter", True)
            tensors[out] = Tensor(out, (BATCH, n), "fp32", "activation", True)
            sizes = {"b": BATCH, "k": k, "n": n}
            annotation = Annotation(
                ((("b",), ("k",)), (("n",), ("k",))), ((("b",), ("n",)),), sizes, reductions={"k": "sum"}
            )
            ops.append(Op(f"{name}{s}.linear", "linear", (source, weight), (out,), {}, annotation))
            source = out
    weights = tuple(name for name, tensor in tensors.items() if tensor.role == "parameter")
    return Graph("mlp", tensors, tuple(ops), ("x",), source, weights)


def pipeline(
    stages: int = 2,
    data: int = 2,
    tensor: int = 2,
    micro_batches: int = 3,
    *,
    meshes: tuple[Mesh, ...] = (),
    templates: bool = True,
) -> Program:
    """One step under GPipe; stages take the devices in turn, unless told otherwise."""
    size = data * tensor
    meshes = meshes or tuple(Mesh(tuple(range(s * size, (s + 1) * size)), (data, tensor)) for s in range(stages))
    made = graph(stages)
    parts = [_Stage(made, s, meshes, micro_batches) for s in range(stages)]
    order = [Block(s, m, "F") for m in range(micro_batches) for s in range(stages)]
    order += [Block(s, m, "B") for m in range(micro_batches) for s in reversed(range(stages))]
    plan = Plan(
        "",
        tuple(Stage(f"part {s}", p.ops, p.mesh, p.run.splits) for s, p in enumerate(parts)),
        micro_batches,
        tuple(order),
        "by hand",
    )
    lists = (
        [p.forward() for p in parts]
        + [p.backward() for p in parts]
        + [tuple(action for p in parts for action in p.update())]
    )
    which = [block.stage + (stages if block.what == "B" else 0) for block in order] + [2 * stages]
    blocks = (*order, None)
    sections = Sections(blocks, tuple(which), tuple(lists))
    weights = {name: layout for p in parts for name, layout in p.weights.items()}
    return Program(
        made,
        plan,
        tuple(p.run for p in parts),
        weights,
        sections if templates else tuple(Section(s.block, s.actions) for s in sections),
        states=weights,
    )


class _Stage:
    """One stage's run and actions."""

    def __init__(self, made: Graph, number: int, meshes: tuple[Mesh, ...], micro_batches: int) -> None:
        self.number, self.mesh, self.meshes, self.micro_batches = number, meshes[number], meshes, micro_batches
        mesh = self.mesh
        self.ops = (f"up{number}.linear", f"down{number}.linear")
        self.entry = f"down{number - 1}" if number else "x"
        self.exit = f"down{number}"
        self.whole = self._whole(mesh)
        self.addends = Layout(mesh, ((0,), ()), (1,))
        self.weights = {
            f"up{number}.weight": Layout(mesh, ((1,), ())),
            f"down{number}.weight": Layout(mesh, ((), (1,))),
        }
        inputs = [(self.entry, "", self.whole), *((name, "", layout) for name, layout in self.weights.items())]
        gradients = [(name, "addends", Layout(mesh, layout.dims, (0,))) for name, layout in self.weights.items()]
        if number:
            gradients.append((self.entry, "addends", self.addends))
        splits = {self.ops[0]: ("b", "n"), self.ops[1]: ("b", "k")}
        self.run = Run(
            number,
            number,
            mesh,
            self.ops,
            splits,
            tuple(inputs),
            ((self.exit, "addends", self.addends),),
            tuple(gradients),
            (self.exit,),
        )

    @staticmethod
    def _whole(mesh: Mesh) -> Layout:
        return Layout(mesh, ((0,), ()))

    def forward(self) -> tuple[Action, ...]:
        entry = Buffer(self.entry, "value", "", HERE)
        addends, out = Buffer(self.exit, "value", "addends", HERE), Buffer(self.exit, "value", "", HERE)
        actions: list[Action] = []
        if not self.number:
            actions.append(Load(self.mesh, entry, self.whole))
        actions += [
            Compute(self.number, "forward", HERE),
            Move(self.mesh, "all-reduce", addends, out, self.addends, self.whole, (BATCH, WIDTH), "fp32", (1,)),
            Free(self.mesh, (addends, entry)),
        ]
        if self.number + 1 < len(self.meshes):
            there = self._whole(self.meshes[self.number + 1])
            actions.append(Transfer(out, out, self.whole, there, (BATCH, WIDTH), "fp32"))
        return tuple(actions)

    def backward(self) -> tuple[Action, ...]:
        out = Buffer(self.exit, "gradient", "", HERE)
        actions: list[Action] = []
        if self.number + 1 == len(self.meshes):
            actions.append(Seed(self.mesh, out, 1.0))
        actions.append(Compute(self.number, "backward", HERE))
        actions.append(Free(self.mesh, (out,)))
        for name in self.weights:
            source = Buffer(name, "gradient", "addends", HERE)
            actions += [Accumulate(self.mesh, source, Buffer(name, "gradient", "addends")), Free(self.mesh, (source,))]
        if self.number:
            addends, entry = Buffer(self.entry, "gradient", "addends", HERE), Buffer(self.entry, "gradient", "", HERE)
            shape = (BATCH, WIDTH)
            there = self._whole(self.meshes[self.number - 1])
            actions += [
                Move(self.mesh, "all-reduce", addends, entry, self.addends, self.whole, shape, "fp32", (1,)),
                Free(self.mesh, (addends,)),
                Transfer(entry, entry, self.whole, there, shape, "fp32"),
            ]
        return tuple(actions)

    def update(self) -> tuple[Action, ...]:
        actions: list[Action] = []
        for name, layout in self.weights.items():
            addends, total = Buffer(name, "gradient", "addends"), Buffer(name, "gradient", "")
            shape = (INNER, WIDTH) if name.startswith("up") else (WIDTH, INNER)
            before = Layout(self.mesh, layout.dims, (0,))
            actions += [
                Move(self.mesh, "all-reduce", addends, total, before, layout, shape, "fp32", (0,)),
                Update(self.mesh, Buffer(name, "value"), total, layout),
            ]
        return tuple(actions)
