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
    from engines.superscaler.verify.rendezvous import Lists

TOLERANCE = 1e-10
STEPS = 2


def check(program: Program, lists: Lists, module: nn.Module, example: Sequence[Tensor]) -> tuple[Finding, ...]:
    """Two steps of training; a finding if losses, gradients or weights are further apart than rounding explains.

    Args:
        program: What the lists belong to.
        lists: Instructions of every rank.
        module: What the program's graph was traced from.
        example: One micro-batch, of which others are made.
    """
    from engines.superscaler.runtime.interpret import interpret
    from engines.superscaler.runtime.outcome import compare
    from engines.superscaler.runtime.reference import make_batches, train

    batches = make_batches(example, STEPS, program.plan.micro_batches)
    expected = train(module, batches)
    try:
        compare(interpret(program, module, batches, lists=lists), expected, TOLERANCE)
    except (HarnessError, RuntimeError) as error:
        return (Finding(3, -1, -1, "I1", f"does not compute what one device does: {error}"),)
    return ()
