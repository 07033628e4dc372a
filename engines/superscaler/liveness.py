"""When a value is freed: right after whatever reads it last, so that memory is what a plan says it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engines.superscaler.program import Free

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from engines.superscaler.effects import Effects
    from engines.superscaler.layout import Mesh
    from engines.superscaler.program import Action, Buffer


def freed(
    parts: Sequence[Sequence[Action]],
    effects: Callable[[Action], Effects],
    meshes: Mapping[Buffer, Mesh],
    kept: Callable[[Buffer], bool],
) -> tuple[tuple[Action, ...], ...]:
    """Actions with `Free` after the last reading of each value; parts are carried out in their order.

    A value may be made, freed, and made again (weights gathered for each pass, activations computed again).

    Args:
        parts: Actions, in order.
        effects: What each reads and writes.
        meshes: Where each buffer lies.
        kept: Buffers that are not freed here.
    """
    needed: set[Buffer] = set()
    found: list[tuple[Action, ...]] = []
    for part in reversed(parts):
        backwards: list[Action] = []
        for action in reversed(part):
            reads, writes = effects(action)
            last = dict.fromkeys(b for b in (*reads, *writes) if b not in needed and not kept(b))
            if last:
                _free(backwards, last, meshes)
            needed.difference_update(writes)
            needed.update(reads)
            backwards.append(action)
        found.append(tuple(reversed(backwards)))
    return tuple(reversed(found))


def _free(backwards: list[Action], dead: Mapping[Buffer, None], meshes: Mapping[Buffer, Mesh]) -> None:
    by_mesh: dict[Mesh, list[Buffer]] = {}
    for buffer in dead:
        by_mesh.setdefault(meshes[buffer], []).append(buffer)
    frees: list[Action] = [Free(mesh, tuple(buffers)) for mesh, buffers in by_mesh.items()]
    backwards += reversed(frees)
