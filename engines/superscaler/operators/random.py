"""Random masks that depend on where an element is in the whole tensor, not on who computes it.

Any split of an operator, any replica and any recomputation draws the same numbers: they are a hash of (seed, operator,
step, micro-batch, index), as counter-based generators do it (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2,
3", SC 2011). The mixing function is SplitMix64's (Steele et al., OOPSLA 2014).
"""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING

from engines.superscaler.operators.context import current

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

_GAMMA, _MIX1, _MIX2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_BITS = 53
"""As many as a double holds exactly."""


def kept(
    op: str, rate: float, shape: Sequence[int], starts: Sequence[int], local: Sequence[int], device: torch.device
) -> torch.Tensor:
    """Mask of the elements of a part that dropout keeps.

    Args:
        op: name of the operator.
        rate: probability that an element is dropped.
        shape: of the whole tensor.
        starts: where the part begins, along every dim.
        local: shape of the part.
        device: where the mask is made.

    Returns:
        bool, of shape `local`.
    """
    import torch

    index = torch.zeros((), dtype=torch.int64, device=device)
    for place, (start, length) in enumerate(zip(starts, local, strict=True)):
        stride = math.prod(shape[place + 1 :])
        along = torch.arange(start, start + length, dtype=torch.int64, device=device) * stride
        index = index + along.view(-1, *(1,) * (len(local) - place - 1))
    return _uniform(index.expand(tuple(local)), _key(op)) >= rate


def _key(op: str) -> int:
    now = current()
    digest = hashlib.sha256(f"{now.seed}/{now.step}/{now.micro_batch}/{op}".encode()).digest()
    return int.from_bytes(digest[:8], "little")


def _uniform(index: torch.Tensor, key: int) -> torch.Tensor:
    """Doubles in [0, 1) from 64-bit counters."""
    bits = index * _signed(_GAMMA) + _signed(key)
    bits = (bits ^ _shifted(bits, 30)) * _signed(_MIX1)
    bits = (bits ^ _shifted(bits, 27)) * _signed(_MIX2)
    bits = bits ^ _shifted(bits, 31)
    return _shifted(bits, 64 - _BITS).double() / 2**_BITS


def _signed(value: int) -> int:
    """The same 64 bits as a signed number: torch has no unsigned arithmetic, and multiplication wraps alike."""
    return value - 2**64 if value >= 2**63 else value


def _shifted(bits: torch.Tensor, by: int) -> torch.Tensor:
    """Logical right shift; torch's is arithmetic."""
    return (bits >> by) & (2 ** (64 - by) - 1)
