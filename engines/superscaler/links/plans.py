"""Plans of layers of two linear maps (`models.mlp`) to time on real links: data, tensor and pipeline parallel, ZeRO."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engines.superscaler import order
from engines.superscaler.dependency import preserve
from engines.superscaler.layout import Mesh
from engines.superscaler.plan import Plan, Stage, Weight

if TYPE_CHECKING:
    from engines.superscaler.graph import Graph, Op
    from engines.superscaler.program import Program


@dataclass(frozen=True)
class Case:
    """Sizes of a model and how it is divided; everything a plan follows from."""

    data: int = 1
    tensor: int = 1
    stages: int = 1
    zero: int = 0
    """Stage of ZeRO, over the data axis: 0 to 3."""
    micro_batches: int = 1
    schedule: str = "one_f_one_b"
    batch: int = 96
    """Rows of a micro-batch."""
    hidden: int = 192
    inner: int = 384
    layers: int = 4

    @property
    def ranks(self) -> int:
        """How many it uses."""
        return self.data * self.tensor * self.stages

    @property
    def name(self) -> str:
        """`dp 2 x tp 2, zero 1, 96 x 192 x 384`."""
        degrees = {"dp": self.data, "tp": self.tensor, "pp": self.stages}
        parts = " x ".join(f"{axis} {degree}" for axis, degree in degrees.items() if degree > 1) or "one"
        zero = f", zero {self.zero}" if self.zero else ""
        pipeline = f", {self.schedule} of {self.micro_batches}" if self.stages > 1 or self.micro_batches > 1 else ""
        return f"{parts}{zero}{pipeline}, {self.batch} x {self.hidden} x {self.inner}"


def traced(case: Case) -> Graph:
    """The model's graph, for one micro-batch."""
    from engines.superscaler import models, trace

    sizes = {"batch": case.batch, "hidden": case.hidden, "inner": case.inner, "layers": case.layers}
    return trace.trace(*models.build("mlp", **sizes))


def program(case: Case) -> Program:
    """The program of a case's plan."""
    graph = traced(case)
    size = case.data * case.tensor
    stages = []
    for number in range(case.stages):
        mesh = Mesh(tuple(range(number * size, (number + 1) * size)), (case.data, case.tensor))
        ops = [op for op in graph.ops if _stage_of(op, case) == number]
        splits = {op.name: (_rows(op), _columns(op, case)) for op in ops}
        weights = {}
        if case.zero and case.data > 1:
            for op in ops:
                weights |= {
                    name: Weight(((0, 0),), gradient=case.zero >= 2, value=case.zero >= 3)
                    for name in op.inputs
                    if graph.tensors[name].role == "parameter"
                }
        stages.append(Stage(f"part {number}", tuple(op.name for op in ops), mesh, splits, weights=weights))
    made = getattr(order, case.schedule)(case.stages, case.micro_batches)
    return preserve(graph, Plan(graph.digest, tuple(stages), case.micro_batches, made, case.name))


def cases() -> tuple[Case, ...]:
    """Those that predictions are scored on: two to four ranks, every kind of parallelism and hybrids, several sizes."""
    large = {"hidden": 256, "inner": 768}
    tall = {"batch": 384}
    one_axis = [
        *(Case(data=d, zero=z) for d, z in itertools.product((2, 4), (0, 1, 3))),
        *(Case(data=d, **large) for d in (2, 3, 4)),
        Case(data=4, zero=2, **large),
        *(Case(tensor=t) for t in (2, 3, 4)),
        *(Case(tensor=t, **tall) for t in (2, 4)),
    ]
    pipelines = [
        Case(stages=2, micro_batches=4, **tall),
        Case(stages=4, micro_batches=4, **tall),
        Case(stages=4, micro_batches=8, **tall),
        Case(stages=4, micro_batches=4, schedule="gpipe", **tall),
    ]
    hybrids = [
        Case(data=2, tensor=2),
        Case(data=2, tensor=2, **large),
        Case(data=2, tensor=2, zero=1, **tall),
        Case(data=2, stages=2, micro_batches=4),
        Case(data=2, stages=2, micro_batches=4, **tall),
        Case(tensor=2, stages=2, micro_batches=4),
        Case(tensor=2, stages=2, micro_batches=2, **large),
    ]
    return (*one_axis, *pipelines, *hybrids)


def _stage_of(op: Op, case: Case) -> int:
    """Layers in turn, equally many to a stage; what comes behind the layers goes to the last."""
    if not op.name.startswith("layers."):
        return case.stages - 1
    return int(op.name.split(".")[1]) * case.stages // case.layers


def _rows(op: Op) -> str:
    """The identifier of the batch: the first dim of the first tensor, '' for scalars."""
    first = op.annotation.inputs[0]
    return first[0][0] if first else ""


def _columns(op: Op, case: Case) -> str:
    """Megatron's way: the first linear map by columns, the second by rows, the GELU between them alike."""
    if case.tensor == 1:
        return ""
    return {"up": "n", "activation": "d1", "down": "k"}.get(op.name.rpartition(".")[2], "")
