"""From one layout of a tensor to another: the steps of phase 3.

`within` one mesh, `between` two meshes; `pieces` says what an exchange sends, `lower_bound` how little any could.
"""

from engines.superscaler.redistribution.bound import lower_bound
from engines.superscaler.redistribution.crossing import between
from engines.superscaler.redistribution.paths import within
from engines.superscaler.redistribution.pieces import Piece, pieces
from engines.superscaler.redistribution.prices import Bytes, Prices
from engines.superscaler.redistribution.steps import Crossing, Step, received, sent_in_all

__all__ = [
    "Bytes",
    "Crossing",
    "Piece",
    "Prices",
    "Step",
    "between",
    "lower_bound",
    "pieces",
    "received",
    "sent_in_all",
    "within",
]
