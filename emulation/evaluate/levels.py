"""What of a device's memory was held and how fast links moved, over time: the counters of a timeline."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from emulation.io.chrome_trace import Level
from emulation.units import PICOSECONDS_PER_SECOND

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from emulation.cost import Cost
    from emulation.evaluate.tasks import Tasks

BUSIEST = 16
"""Links that are drawn; a ring over eight devices alone uses sixteen."""
Spell = tuple["Cost", int, int]
"""A cost that was paid from one picosecond to another."""


def memory(tasks: Tasks, end: Sequence[int]) -> Iterator[Level]:
    """Bytes held on each device on which memory was allocated."""
    changes: dict[str, list[tuple[int, int]]] = {}
    for node in tasks.workload.nodes:
        if node.kind in {"alloc", "free"}:
            sign = 1 if node.kind == "alloc" else -1
            changes.setdefault(node.devices[0], []).append((end[node.id], sign * node.nbytes))
    for device, of_device in changes.items():
        yield from _running(device, "memory", of_device, "bytes")


def links(tasks: Tasks, spells: Iterable[Spell]) -> Iterator[Level]:
    """Bytes per second over the links that carried most; of each transfer the mean over the time it took."""
    changes: dict[int, list[tuple[int, int]]] = {}
    carried: dict[int, float] = {}
    for cost, start, end in spells:
        for link, amount in cost.traffic if end > start else ():
            # Whole numbers, so that what was added and taken away again leaves nothing.
            rate = round(amount * PICOSECONDS_PER_SECOND / (end - start))
            changes.setdefault(link, []).extend([(start, rate), (end, -rate)])
            carried[link] = carried.get(link, 0.0) + amount
    for link in sorted(sorted(carried, key=lambda link: (-carried[link], link))[:BUSIEST]):
        yield from _running("links", tasks.links[link].name, changes[link], "bytes per second")


def _running(process: str, name: str, changes: list[tuple[int, int]], unit: str) -> Iterator[Level]:
    total = 0
    for at, together in groupby(sorted(changes), key=lambda change: change[0]):
        total += sum(amount for _, amount in together)
        yield Level(process, name, at / PICOSECONDS_PER_SECOND, total, unit)
