"""One global order out of a list for every device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engines.superscaler.order.pipeline import named
from harness.api import PlanError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from engines.superscaler.order.pipeline import Pipeline
    from engines.superscaler.plan import Block


def merge(pipeline: Pipeline, lists: Mapping[int, Sequence[Block]]) -> tuple[Block, ...]:
    """A topological order of what blocks need and of the devices' lists: each list is its projection.

    Of the blocks that could come next, that comes first which the fewest others must precede in time (its level), so
    that the order reads as time does: what happens at once on different devices stands together.

    Args:
        pipeline: stages and dependence.
        lists: device -> its blocks; a block of several devices is in each of their lists.

    Raises:
        PlanError: a device's list lacks a block of its own or has another's, or the lists and the dependence between
            blocks make a circle, which the message names.
    """
    import networkx as nx

    owned: dict[int, set[Block]] = {device: set() for device in pipeline.groups}
    for block in pipeline.blocks():
        for device in pipeline.devices[block.stage]:
            owned[device].add(block)
    for device, own in owned.items():
        listed = list(lists.get(device, ()))
        wrong = own.symmetric_difference(listed)
        if wrong:
            block = min(wrong)
            raise PlanError(f"{named(block)} is {'not ' if block in own else ''}in the list of device {device}")
        if len(listed) != len(own):
            raise PlanError(f"device {device} has {len(listed)} blocks in its list, of {len(own)} different ones")
    graph: nx.DiGraph[Block] = nx.DiGraph()
    graph.add_nodes_from(pipeline.blocks())
    for block in pipeline.blocks():
        graph.add_edges_from((need, block) for need in pipeline.needs(block))
    for device in sorted(lists):
        graph.add_edges_from(zip(lists[device][:-1], lists[device][1:], strict=True))
    try:
        level: dict[Block, int] = {}
        for number, generation in enumerate(nx.topological_generations(graph)):
            level.update(dict.fromkeys(generation, number))
    except nx.NetworkXUnfeasible:
        circle = [edge[0] for edge in nx.find_cycle(graph)]
        raise PlanError(
            "the devices' lists wait for each other in a circle: "
            + ", then ".join(named(block) for block in [*circle, circle[0]])
        ) from None
    return tuple(sorted(level, key=lambda block: (level[block], block)))
