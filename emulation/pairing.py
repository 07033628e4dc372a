"""How the members of two groups, or of one, are joined: the `pairing` of a link.

=============  ======================================================================================================
`all`          every member of one with every member of the other (an NVSwitch node: `ends: [gpu, nvswitch]`)
`index`        the n-th with the n-th
`block`        members of the smaller group have consecutive shares of the larger (a PCIe tree: `ends: [gpu, bridge]`)
`mesh`         every two members of one group
`ring`         each member of a group with the next
`cube-mesh`    the hybrid cube mesh of eight accelerators
=============  ======================================================================================================
"""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

from emulation.refusal import refuse

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from emulation.refusal import Path

WITHIN = ("mesh", "ring", "cube-mesh")
"""Pairings of a group with itself."""
CUBE_MESH = {
    1: ((0, 1), (0, 2), (1, 3), (2, 6), (3, 7), (4, 5), (4, 6), (5, 7)),
    2: ((0, 3), (0, 4), (1, 2), (1, 5), (2, 3), (4, 7), (5, 6), (6, 7)),
}
"""Lanes -> pairs of the hybrid cube mesh (NVIDIA DGX-1 with V100: six lanes an accelerator)."""


def paired(pairing: str, left: Sequence[str], right: Sequence[str], path: Path) -> Iterator[tuple[str, str, int]]:
    """Pairs of members that a link inside a host joins, with the lanes of each as a multiple of the link's.

    Args:
        pairing: `mesh`, `ring`, `cube-mesh` (within `left`), `index`, `block` or `all`.
        left: members of one group.
        right: members of the other; those of the same one for pairings within a group.
        path: of the link, for errors.

    Raises:
        PydanticCustomError: the groups do not have the sizes that the pairing needs.
    """
    if pairing in {"mesh", "ring"} and len(left) < 2:
        refuse((*path, "ends"), f"a {pairing} needs two members; {left[0].rstrip('0123456789')!r} has one")
    if pairing == "mesh":
        yield from ((a, b, 1) for a, b in combinations(left, 2))
    elif pairing == "ring":
        # Two members have one link between them, not one each way around.
        last = len(left) if len(left) > 2 else 1
        yield from ((left[n], left[(n + 1) % len(left)], 1) for n in range(last))
    elif pairing == "cube-mesh":
        if len(left) != 8:
            refuse((*path, "ends"), f"a cube mesh has eight members, not {len(left)}")
        yield from ((left[a], left[b], lanes) for lanes, pairs in CUBE_MESH.items() for a, b in pairs)
    elif pairing == "index":
        if len(left) != len(right):
            refuse((*path, "pairing"), f"`index` needs groups of one size, not {len(left)} and {len(right)}")
        yield from ((a, b, 1) for a, b in zip(left, right, strict=True))
    elif pairing == "block":
        small, large = sorted((len(left), len(right)))
        if large % small:
            refuse((*path, "pairing"), f"`block` needs one group to divide the other, not {len(left)} and {len(right)}")
        yield from ((left[n * len(left) // large], right[n * len(right) // large], 1) for n in range(large))
    else:
        yield from ((a, b, 1) for a in left for b in right)
