"""Level 3: numbers. All ranks are interpreted in this process in float64, and held against one device.

The lower levels trust the operators; this one does not. It needs memory for the whole model, so it is for small ones:
annotations are the same for every size, and a model of the same structure with small, unequal dims shows the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engines.superscaler.verify.findings import Finding
from harness.api import HarnessError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from engines.superscaler.program import Program
    from engines.superscaler.runtime.optimizer import Optimizer
    from engines.superscaler.runtime.outcome import Difference
    from engines.superscaler.verify.rendezvous import Lists

TOLERANCE = 1e-10
STEPS = 2


def difference(
    program: Program,
    module: nn.Module,
    example: Sequence[Tensor],
    *,
    optimizer: Optimizer | None = None,
    lists: Lists | None = None,
) -> Difference:
    """Where two steps of training are farthest from one device's, in float64.

    Args:
        program: What to do.
        module: What the program's graph was traced from.
        example: One micro-batch, of which others are made.
        optimizer: Adam by default.
        lists: Instructions of every rank, if not the program's projections.

    Raises:
        HarnessError: by more than rounding explains, or the lists cannot be carried out.
    """
    from engines.superscaler.runtime.interpret import interpret
    from engines.superscaler.runtime.outcome import compare
    from engines.superscaler.runtime.reference import make_batches, train

    batches = make_batches(example, STEPS, program.plan.micro_batches)
    expected = train(module, batches, optimizer)
    found = interpret(program, module, batches, optimizer=optimizer, lists=lists)
    return compare(found, expected, TOLERANCE)


def check(program: Program, lists: Lists, module: nn.Module, example: Sequence[Tensor]) -> tuple[Finding, ...]:
    """Two steps of training; a finding if losses, gradients or weights are further apart than rounding explains.

    Args:
        program: What the lists belong to.
        lists: Instructions of every rank.
        module: What the program's graph was traced from.
        example: One micro-batch, of which others are made.
    """
    try:
        difference(program, module, example, lists=lists)
    except (HarnessError, RuntimeError) as error:
        return (Finding(3, -1, -1, "I1", f"does not compute what one device does: {error}"),)
    return ()
