"""How far a prediction may be off: the claimed 80 % band.

A model's error has a size that depends on what the model is about (its *family*) and on where its figures came from
(their *grade*). Widths are natural logarithms, because errors multiply: a width of 0.10 is a factor of 1.105. They
have two sides, because simple models err towards "too fast".

============  ========  ==============  ===================================================================
family        grade     faster, slower  where from
============  ========  ==============  ===================================================================
collective    prior     0.05, 0.80      NCCL tuner constants against a published A100 table, 2-8 GPUs and
                                        1 MB-1 GB: true/predicted lies between 1.04 and 2.6, p90 2.2
compute       prior     0.24, 0.24      mean error 14.7 % of a profile-based predictor on up to 512 A100 that
                                        was not fitted to them (vTrain), as an 80 % quantile of a normal error
host, memory  prior     0.30, 0.30      transport and copy timings repeated on a shared 2-core VM: +-30 %
and p2p
all           measured  0.10, 0.10      calibrated simulators: 3-9 % (Calculon, Lumos, SimGrid)
all           datasheet 0.05, 2 x       assumed: a peak is hardly exceeded, and twice as uncertain as a prior
============  ========  ==============  ===================================================================

Along the critical path, d ln T = sum of share x d ln t: a family with half of the time contributes half of its width.
Errors within one (family, grade) are taken to go together, those of different ones to be independent, so the
contributions are added in quadrature. Bands are claims to be scored against measurements, not guarantees.

The table is for models that nobody has held against measurements of the cluster. Where that was done, the profile has
the quantiles of what they were off by (`residuals`), by family and work or for one collective table, and these are
claimed instead.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from emulation.figures import weakest
from emulation.residuals import spread_at

if TYPE_CHECKING:
    from collections.abc import Mapping

    from emulation.cost import Cost, Family
    from emulation.figures import Grade
    from emulation.profile import Profile
    from emulation.residuals import Spread

_PRIOR: dict[Family, tuple[float, float]] = {
    "host": (0.30, 0.30),
    "compute": (0.24, 0.24),
    "memory": (0.30, 0.30),
    "p2p": (0.30, 0.30),
    "collective": (0.05, 0.80),
}


def width(family: Family, grade: Grade) -> Spread:
    """Half-widths in log space (towards faster, towards slower) of one family of models at one grade."""
    if grade == "measured":
        return 0.10, 0.10
    faster, slower = _PRIOR[family]
    return (faster, slower) if grade == "prior" else (0.05, 2 * slower)


def claimed(cost: Cost, work: float, profile: Profile) -> Cost:
    """The cost with the spread that the profile's residuals give its family for this much work (bytes, or FLOP).

    A spread it has already is kept. Residuals say nothing of costs whose figures are of a weaker grade than their own.
    """
    if cost.spread is not None or not profile.residuals or not (cost.fixed or cost.work):
        return cost
    for known in profile.residuals:
        if known.family == cost.family and weakest((known.grade, cost.grade)) == known.grade:
            return replace(cost, spread=spread_at(known.stretches, work))
    return cost


def combined(shares: Mapping[tuple[Family, Grade, Spread | None], float]) -> Spread:
    """Half-widths of a total whose parts have these shares (of one)."""
    sides: dict[tuple[Family, Grade], tuple[float, float]] = {}
    for (family, grade, spread), share in shares.items():
        low, high = spread or width(family, grade)
        faster, slower = sides.get((family, grade), (0.0, 0.0))
        sides[family, grade] = faster + share * low, slower + share * high
    return math.hypot(*(low for low, _ in sides.values())), math.hypot(*(high for _, high in sides.values()))
