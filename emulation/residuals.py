"""What models were off by, where somebody looked: the quantiles from which a band is claimed.

A residual is ln(measured / predicted) of a row that the prediction was *not* fitted to (cross-validation). Between the
10 % and the 90 % quantile of such residuals a new row lies in four cases of five, whatever their distribution, as long
as it is exchangeable with them (split-conformal prediction: Vovk, Gammerman, Shafer 2005; Lei et al., JASA 2018).
Rows of very different work are not exchangeable (a small message is off by twenty times as much as a large one), so
the quantiles are kept for stretches of work.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from emulation.cost import Family
from emulation.figures import Figure
from emulation.units import Strict

if TYPE_CHECKING:
    from collections.abc import Sequence

OUTSIDE = 2.0
"""How many times wider a band is outside the work that was looked at: assumed, as that of a weaker grade."""

Spread = tuple[float, float]
"""Half-widths in log space: towards faster, towards slower; neither negative."""


class Residuals(Strict):
    """Quantiles of ln(measured / predicted) for the work of one stretch."""

    least: float = Field(ge=0)
    """Smallest work that was looked at: bytes moved, or FLOP of a kernel."""
    most: float = Field(ge=0)
    q10: float = Field(le=0)
    """Not above 0: a prediction lies in its own band."""
    q90: float = Field(ge=0)
    count: int = Field(ge=1)
    """Rows they are taken of."""


class FamilyResiduals(Figure):
    """What one family of models was off by; used instead of its grade's width, for costs of no weaker grade."""

    family: Family
    digest: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")
    """SHA-256 of the samples behind it."""
    stretches: list[Residuals] = Field(min_length=1)
    """By rising work."""

    @model_validator(mode="after")
    def _ordered(self) -> FamilyResiduals:
        check_rising(self.stretches)
        return self


def check_rising(stretches: Sequence[Residuals]) -> None:
    """Refuse stretches that overlap or are out of order.

    Raises:
        PydanticCustomError: they do.
    """
    ends = [end for stretch in stretches for end in (stretch.least, stretch.most)]
    if ends != sorted(ends):
        raise PydanticCustomError("residual_order", "residuals must be given for rising stretches of work")


def spread_at(stretches: Sequence[Residuals], work: float) -> Spread:
    """Half-widths for this much work: those of the stretch that reaches up to it, wider beyond the ends.

    Raises:
        ValueError: there are no stretches.
    """
    if not stretches:
        raise ValueError("no residuals to take a band from")
    found = next((stretch for stretch in stretches if work <= stretch.most), stretches[-1])
    factor = 1.0 if stretches[0].least <= work <= stretches[-1].most else OUTSIDE
    # Written so that no width is -0.0.
    return abs(factor * found.q10), factor * found.q90
