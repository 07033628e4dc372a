"""What came of some steps of training, and how far two of them are apart."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from engines.superscaler.runtime.routine import combine
from harness.api import HarnessError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from engines.superscaler.layout import Layout


class Disagreement(HarnessError):
    """Two outcomes that should be equal are not, or ranks hold different copies of one value."""


@dataclass
class Outcome:
    """Of a program, or of the model on one device."""

    losses: list[list[float]]
    """For every step that of each micro-batch."""
    gradients: list[dict[str, Tensor]]
    """For every step the whole gradients that the optimizer was given, by parameter."""
    parameters: dict[str, Tensor]
    """Whole, after the last step."""
    sent: dict[int, int] = field(default_factory=dict)
    """Bytes that each rank sent in all steps, of the dtypes that the program says."""
    received: dict[int, int] = field(default_factory=dict)
    peak: dict[int, int] = field(default_factory=dict)
    """Most bytes of live values on each rank: buffers, what autograd keeps, optimizer state."""
    order: list[tuple[int, int]] = field(default_factory=list)
    """(rank, number of its instruction) of every communication, as they ended."""

    @property
    def loss(self) -> list[float]:
        """Of every step: the mean over micro-batches."""
        return [math.fsum(step) / len(step) for step in self.losses]


@dataclass(frozen=True)
class Difference:
    """Where two outcomes are farthest apart."""

    relative: float
    """Largest difference of an element, over the largest element of its tensor (see `floor` of `compare`)."""
    where: str
    """`gradient of 'layers.0.weight' in step 1`."""


def compare(outcome: Outcome, expected: Outcome, rtol: float, floor: float = 1e-3) -> Difference:
    """The worst of all losses, gradients and parameters.

    Args:
        outcome: Of a program.
        expected: Of the reference.
        rtol: Largest relative difference to accept.
        floor: A tensor whose largest element is less than this part of the largest of its kind is held against that
            part instead. A gradient that is zero (that of a key's bias, to which a softmax is blind) is rounding
            alone, which is as large as rounding of the others.

    Raises:
        Disagreement: it is more than `rtol`, or one has what the other lacks; names the tensor.
    """
    worst = Difference(0.0, "nothing")
    for step, (have, want) in enumerate(zip(outcome.losses, expected.losses, strict=True), 1):
        if len(have) != len(want):
            raise Disagreement(f"step {step} has {len(have)} losses, the reference {len(want)}")
        for number, (a, b) in enumerate(zip(have, want, strict=True)):
            off = abs(a - b) / max(abs(b), 1e-300)
            worst = _worse(worst, off, f"loss of micro-batch {number} in step {step}")
    for step, (have, want) in enumerate(zip(outcome.gradients, expected.gradients, strict=True), 1):
        worst = _compare(have, want, f"gradient of {{!r}} in step {step}", floor, worst)
    worst = _compare(outcome.parameters, expected.parameters, "parameter {!r} after the last step", floor, worst)
    if not worst.relative <= rtol:
        raise Disagreement(f"{worst.where} is off by {worst.relative:.2g} of its largest element, more than {rtol:g}")
    return worst


def _compare(
    have: Mapping[str, Tensor], want: Mapping[str, Tensor], where: str, floor: float, worst: Difference
) -> Difference:
    if have.keys() != want.keys():
        name = min(have.keys() ^ want.keys())
        raise Disagreement(f"only {'the program' if name in have else 'the reference'} has the {where.format(name)}")
    largest = {name: float(tensor.abs().max()) if tensor.numel() else 0.0 for name, tensor in want.items()}
    least = max(largest.values(), default=0.0) * floor
    for name, tensor in want.items():
        if have[name].shape != tensor.shape:
            raise Disagreement(f"{where.format(name)} has shape {tuple(have[name].shape)}, not {tuple(tensor.shape)}")
        if tensor.numel():
            off = float((have[name].double() - tensor.double()).abs().max())
            worst = _worse(worst, off / max(largest[name], least, 1e-300), where.format(name))
    return worst


def _worse(worst: Difference, off: float, where: str) -> Difference:
    # A NaN compares with nothing: make it the worst there is.
    off = math.inf if math.isnan(off) else off
    return Difference(off, where) if off > worst.relative else worst


def assemble(what: str, layout: Layout, shape: tuple[int, ...], parts: Mapping[int, Tensor]) -> Tensor:
    """The whole of a tensor, from what each rank holds of it.

    Args:
        what: For messages.
        layout: Of the parts.
        shape: Of the whole.
        parts: By rank; of all ranks in the layout's mesh.

    Raises:
        Disagreement: a rank lacks its part, it has another shape, or copies are not equal to the last bit.
    """
    found: dict[tuple[tuple[int, int], ...], dict[int, tuple[int, Tensor]]] = {}
    for rank, box, (addend, _) in layout.held(shape):
        if rank not in parts:
            raise Disagreement(f"rank {rank} does not have its part of {what}")
        part = parts[rank]
        size = tuple(end - begin for begin, end in box)
        if tuple(part.shape) != size:
            raise Disagreement(f"rank {rank} holds a {tuple(part.shape)} of {what}, not a {size}")
        first = found.setdefault(box, {}).setdefault(addend, (rank, part))
        if not torch.equal(first[1], part):
            off = float((first[1] - part).abs().max())
            raise Disagreement(f"ranks {first[0]} and {rank} hold different copies of {what}: {off:.2g} apart")
    sample = next(iter(parts.values()))
    whole = torch.empty(shape, dtype=sample.dtype, device=sample.device)
    for box, addends in found.items():
        place = tuple(slice(begin, end) for begin, end in box)
        whole[place] = combine([addends[number][1] for number in sorted(addends)], layout.reduction)
    return whole
