"""What an order is made for: which stage needs which, on which devices, with which passes.

An order is data over `plan.Block`; nothing here knows what a stage computes. Dependence is the same for every
micro-batch: a forward pass needs those of the stages that its stage reads from, a backward pass needs its own forward
pass and the backward passes of the stages that read from it, and a weights' pass needs its own backward pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from engines.superscaler.plan import Block
from harness.api import PlanError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from engines.superscaler.graph import Graph
    from engines.superscaler.plan import Pass, Plan, Stage

Passes = Literal["F", "FB", "FBW"]
"""Those of a stage: forward only (nothing is differentiated, or another stage recomputes it); forward and backward;
or with the backward pass in two halves."""


@dataclass(frozen=True)
class Pipeline:
    """Stages and their dependence."""

    devices: tuple[tuple[int, ...], ...]
    """Of every stage; two stages may share some or all."""
    before: tuple[tuple[int, ...], ...]
    """For every stage, the stages that it reads from (lower numbers)."""
    passes: tuple[Passes, ...]
    """Of every stage."""
    micro_batches: int

    def __post_init__(self) -> None:
        if not len(self.devices) == len(self.before) == len(self.passes):
            raise ValueError("a pipeline says devices, dependence and passes of each of its stages")
        for stage, (devices, before) in enumerate(zip(self.devices, self.before, strict=True)):
            if not devices:
                raise PlanError(f"stage {stage} has no device")
            if any(not 0 <= other < stage for other in before):
                raise PlanError(f"stage {stage} reads from stages {before}: they must have lower numbers")
        if not self.devices or self.micro_batches < 1:
            raise PlanError(
                f"a pipeline needs at least one stage and one micro-batch, not {len(self.devices)} and "
                f"{self.micro_batches}"
            )

    @classmethod
    def chain(
        cls,
        devices: Sequence[Sequence[int]],
        micro_batches: int,
        passes: Passes | Sequence[Passes] = "FB",
    ) -> Pipeline:
        """Each stage reads from the one before it."""
        each = (passes,) * len(devices) if isinstance(passes, str) else tuple(passes)
        before = tuple((stage - 1,) if stage else () for stage in range(len(devices)))
        return cls(tuple(tuple(group) for group in devices), before, each, micro_batches)

    @classmethod
    def of(cls, graph: Graph, stages: Sequence[Stage], micro_batches: int, *, split: Collection[int] = ()) -> Pipeline:
        """Dependence and passes as the graph has them.

        A stage has a backward pass if a gradient of the loss reaches one of its operators. The backward passes of the
        stages in `split` are in two halves.
        """
        place = {op: number for number, stage in enumerate(stages) for op in stage.ops}
        before: list[set[int]] = [set() for _ in stages]
        differentiated: set[str] = {graph.loss} if graph.tensors[graph.loss].requires_grad else set()
        backward: set[int] = set()
        for op in reversed(graph.ops):
            if not differentiated.isdisjoint(op.outputs):
                backward.add(place[op.name])
                differentiated.update(name for name in op.inputs if graph.tensors[name].requires_grad)
            for name in op.inputs:
                if name in graph.producer:
                    before[place[op.name]].add(place[graph.producer[name]])
        passes: list[Passes] = []
        for number, found in enumerate(before):
            found.discard(number)
            passes.append(("FBW" if number in split else "FB") if number in backward else "F")
        return cls(
            tuple(stage.mesh.devices for stage in stages),
            tuple(tuple(sorted(found)) for found in before),
            tuple(passes),
            micro_batches,
        )

    @classmethod
    def planned(cls, graph: Graph, plan: Plan) -> Pipeline:
        """That of a plan, whose order says which backward passes are in two halves."""
        split = {block.stage for block in plan.order if block.what == "W"}
        return cls.of(graph, plan.stages, plan.micro_batches, split=split)

    @cached_property
    def after(self) -> tuple[tuple[int, ...], ...]:
        """For every stage, the stages that read from it."""
        found: list[list[int]] = [[] for _ in self.devices]
        for stage, before in enumerate(self.before):
            for other in before:
                found[other].append(stage)
        return tuple(map(tuple, found))

    @cached_property
    def groups(self) -> tuple[int, ...]:
        """All devices, rising."""
        return tuple(sorted({device for devices in self.devices for device in devices}))

    def blocks(self) -> tuple[Block, ...]:
        """All of them: by micro-batch, stage and pass."""
        return tuple(
            Block(stage, micro_batch, what)  # type: ignore[arg-type]
            for micro_batch in range(self.micro_batches)
            for stage, passes in enumerate(self.passes)
            for what in passes
        )

    def needed(self, stage: int, what: Pass) -> tuple[tuple[int, Pass], ...]:
        """(stage, pass) of what a pass of a stage needs, of the same micro-batch."""
        match what:
            case "F":
                return tuple((other, "F") for other in self.before[stage])
            case "B":
                later = tuple(other for other in self.after[stage] if self.passes[other] != "F")
                return ((stage, "F"), *((other, "B") for other in later))
            case _:
                return ((stage, "B"),)

    def needs(self, block: Block) -> tuple[Block, ...]:
        """Blocks that must end before this one starts."""
        return tuple(Block(stage, block.micro_batch, what) for stage, what in self.needed(block.stage, block.what))

    @cached_property
    def last(self) -> Mapping[int, Pass]:
        """For every stage with a backward pass, the pass after which its activations are no longer kept."""
        return {stage: passes[-1] for stage, passes in enumerate(self.passes) if passes != "F"}  # type: ignore[misc]


def named(block: Block) -> str:
    """As messages write it: `F of stage 2, micro-batch 0`."""
    return f"{block.what} of stage {block.stage}, micro-batch {block.micro_batch}"
