"""Run a program with all of its ranks in this process, and put together what comes of it."""

from __future__ import annotations

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
    parameters = {name: in_dtype(value.detach(), dtype) for name, value in module.named_parameters()}
    constants = {name: in_dtype(value.detach(), dtype) for name, value in module.named_buffers()}
    for rank in ranks.values():
        rank.place(parameters, constants)
    wire = Lockstep(ranks)
    losses: list[list[float]] = []
    gradients: list[dict[str, Tensor]] = []
    for step in batches:
        wire.step(named(program, step, dtype))
        losses.append(_losses(program, ranks))
        used = {number: rank.gradients for number, rank in ranks.items()}
        gradients.append(together(program, program.states, used, "the gradient of"))
        for rank in ranks.values():
            rank.finish()
    kept = {number: rank.parameters() for number, rank in ranks.items()}
    return Outcome(
        losses=losses,
        gradients=gradients,
        parameters=together(program, program.weights, kept, "parameter"),
        sent={number: wire.traffic.sent[number] for number in ranks},
        received={number: wire.traffic.received[number] for number in ranks},
        peak={number: rank.peak for number, rank in ranks.items()},
        order=wire.order,
    )


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


def _losses(program: Program, ranks: Mapping[int, Rank]) -> list[float]:
    held = {number: rank.losses() for number, rank in ranks.items() if number in program.loss_layout.mesh.places}
    return [
        float(assemble(f"the loss of micro-batch {m}", program.loss_layout, (), {r: of[m] for r, of in held.items()}))
        for m in range(len(program.losses))
    ]
