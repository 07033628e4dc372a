"""Run a program with all of its ranks in this process, and put together what comes of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from engines.superscaler.runtime.interpreter import Rank
from engines.superscaler.runtime.lockstep import Lockstep
from engines.superscaler.runtime.optimizer import Optimizer
from engines.superscaler.runtime.outcome import Outcome, assemble
from engines.superscaler.runtime.reference import in_dtype
from harness.api import HarnessError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

    from engines.superscaler.layout import Layout
    from engines.superscaler.program import Instruction, Program


def interpret(
    program: Program,
    module: nn.Module,
    batches: Sequence[Sequence[tuple[Tensor, ...]]],
    *,
    optimizer: Optimizer | None = None,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    lists: Mapping[int, Sequence[Instruction]] | None = None,
) -> Outcome:
    """Train for some steps.

    Args:
        program: What to do.
        module: Whose parameters and buffers to start from; it is not changed.
        batches: For every step, for every micro-batch of the plan, the inputs of the graph in its order.
        optimizer: Adam by default.
        dtype: To compute in.
        seed: Of random masks.
        lists: Instructions of each rank, if not the program's projections.

    Raises:
        Deadlock: ranks wait for one another for ever.
        Mismatch: two ends of a communication disagree.
        Disagreement: copies of one value differ between ranks.
        HarnessError: an instruction reads what is not there.
    """
    from engines.superscaler.projection import project

    optimizer = optimizer or Optimizer()
    lists = lists if lists is not None else {rank: project(program, rank) for rank in program.plan.devices}
    ranks = {
        number: Rank(program, number, instructions, optimizer, dtype=dtype, seed=seed, observed=True)
        for number, instructions in lists.items()
    }
    parameters, constants = initial(module, dtype)
    for rank in ranks.values():
        rank.place(parameters, constants)
    wire = Lockstep(ranks)
    held = {number: Held() for number in ranks}
    for step in batches:
        wire.step(named(program, step, dtype))
        for number, rank in ranks.items():
            held[number].after_step(rank)
    for number, rank in ranks.items():
        held[number].at_end(rank, wire.traffic.sent[number], wire.traffic.received[number])
    found = outcome(program, held)
    found.order = wire.order
    return found


@dataclass
class Held:
    """What one rank has of an outcome: its parts."""

    losses: list[list[Tensor | None]] = field(default_factory=list)
    """For every step that of each micro-batch; None where the rank has no part of it."""
    gradients: list[dict[str, Tensor]] = field(default_factory=list)
    parameters: dict[str, Tensor] = field(default_factory=dict)
    sent: int = 0
    """Bytes, in all steps."""
    received: int = 0
    peak: int = 0

    def after_step(self, rank: Rank) -> None:
        """Take what a rank has after a step, and let it forget the rest."""
        self.losses.append(rank.losses())
        self.gradients.append(rank.gradients)
        rank.finish()

    def at_end(self, rank: Rank, sent: int, received: int) -> None:
        """Take what it has after the last step."""
        self.parameters, self.peak = rank.parameters(), rank.peak
        self.sent, self.received = sent, received

    def on_cpu(self) -> Held:
        """The same, to be sent to another process."""
        return Held(
            [[None if loss is None else loss.cpu() for loss in step] for step in self.losses],
            [{name: value.cpu() for name, value in step.items()} for step in self.gradients],
            {name: value.cpu() for name, value in self.parameters.items()},
            self.sent,
            self.received,
            self.peak,
        )


def outcome(program: Program, held: Mapping[int, Held]) -> Outcome:
    """Put together what all ranks have.

    Raises:
        Disagreement: a part is missing, or copies are not equal to the last bit.
    """
    layout = program.loss_layout
    steps = range(len(next(iter(held.values())).losses))
    of_loss = {rank: own.losses for rank, own in held.items() if rank in layout.mesh.places}
    losses = [
        [
            float(assemble(f"the loss of micro-batch {m}", layout, (), {r: own[step][m] for r, own in of_loss.items()}))
            for m in range(len(program.losses))
        ]
        for step in steps
    ]
    gradients = [
        together(program, program.states, {rank: own.gradients[step] for rank, own in held.items()}, "the gradient of")
        for step in steps
    ]
    return Outcome(
        losses=losses,
        gradients=gradients,
        parameters=together(
            program, program.weights, {rank: own.parameters for rank, own in held.items()}, "parameter"
        ),
        sent={rank: own.sent for rank, own in held.items()},
        received={rank: own.received for rank, own in held.items()},
        peak={rank: own.peak for rank, own in held.items()},
    )


def initial(module: nn.Module, dtype: torch.dtype) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The parameters and the buffers of a module by name, in the dtype to compute in."""
    parameters = {name: in_dtype(value.detach(), dtype) for name, value in module.named_parameters()}
    return parameters, {name: in_dtype(value.detach(), dtype) for name, value in module.named_buffers()}


def named(program: Program, step: Sequence[tuple[Tensor, ...]], dtype: torch.dtype) -> list[dict[str, Tensor]]:
    """One step's inputs by name, in the dtype to compute in.

    Raises:
        HarnessError: not as many micro-batches as the plan has, or not as many inputs as the graph.
    """
    inputs, expected = program.graph.inputs, program.plan.micro_batches
    if len(step) != expected:
        raise HarnessError(f"the plan has {expected} micro-batches, the batch {len(step)}")
    for given in step:
        if len(given) != len(inputs):
            raise HarnessError(f"the graph has {len(inputs)} inputs ({', '.join(inputs)}), the batch {len(given)}")
    return [{name: in_dtype(value, dtype) for name, value in zip(inputs, given, strict=True)} for given in step]


def together(
    program: Program, layouts: Mapping[str, Layout], parts: Mapping[int, Mapping[str, Tensor]], what: str
) -> dict[str, Tensor]:
    """Whole tensors from the parts of all ranks: rank -> name -> part."""
    return {
        name: assemble(
            f"{what} {name!r}",
            layout,
            program.graph.tensors[name].shape,
            {rank: held[name] for rank, held in parts.items() if name in held},
        )
        for name, layout in layouts.items()
    }
