"""Costs of operators from recorded times; communication as another source has it.

A record is a JSON file: for every operator class (`cost.signature`) and degrees, forward and backward seconds, what is
kept, and temporaries. `live` writes one; a published profile can be turned into one. What it lacks is an error.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, ClassVar

from engines.superscaler.cost import OperatorCost, signature
from harness.api import PlanError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from engines.superscaler.cost import Costs, Kind, Message, Source
    from engines.superscaler.graph import Graph, Op
    from engines.superscaler.layout import Mesh

SCHEMA = 1


class Recorded:
    """Operators from a file.

    Args:
        entries: key -> figures, as `read` gives them.
        network: where costs of communication, updates and memory come from.
    """

    source: ClassVar[Source] = "profile"

    def __init__(self, entries: Mapping[str, Mapping[str, Any]], network: Costs) -> None:
        self._entries, self._network = entries, network
        content = json.dumps([{key: entries[key] for key in sorted(entries)}, network.digest], sort_keys=True)
        self.digest = hashlib.sha256(content.encode()).hexdigest()
        self.ranks = network.ranks

    def operator(self, graph: Graph, op: Op, degrees: Mapping[str, int]) -> OperatorCost:
        """See `Costs.operator`."""
        entry = self._entries.get(key_of(graph, op, degrees))
        if entry is None:
            split = ", ".join(f"{name} in {count}" for name, count in sorted(degrees.items())) or "nothing"
            raise PlanError(
                f"the recorded costs have no figure for operator {op.name!r} ({op.target}) split on {split}; "
                f"measure it (cost: live) or say cost: abstract"
            )
        return cost_of(op, entry)

    def collective(self, kind: Kind, mesh: Mesh, axes: Sequence[int], nbytes: int) -> float:
        """See `Costs.collective`."""
        return self._network.collective(kind, mesh, axes, nbytes)

    def messages(self, messages: Sequence[Message]) -> float:
        """See `Costs.messages`."""
        return self._network.messages(messages)

    def update(self, rank: int, nbytes: int) -> float:
        """See `Costs.update`."""
        return self._network.update(rank, nbytes)

    def memory(self, rank: int) -> int:
        """See `Costs.memory`."""
        return self._network.memory(rank)


def key_of(graph: Graph, op: Op, degrees: Mapping[str, int]) -> str:
    """Under which an operator's figures stand: a digest of its class and the degrees above one."""
    split = sorted((name, count) for name, count in degrees.items() if count > 1)
    return hashlib.sha256(f"{signature(graph, op)}|{split}".encode()).hexdigest()


def cost_of(op: Op, entry: Mapping[str, Any]) -> OperatorCost:
    """An entry as the cost of an operator; tensors stand in it as numbers among inputs and outputs."""
    own = (*op.inputs, *op.outputs)
    saved = tuple(own[number] for number in entry["saved"])
    return OperatorCost(
        float(entry["forward"]), float(entry["backward"]), saved, entry["saved_extra"], entry["workspace"]
    )


def read(path: Path) -> dict[str, dict[str, Any]]:
    """The entries of a file; none of one that is not there yet.

    Raises:
        PlanError: it is no record of costs, or of another version.
    """
    if not path.exists():
        return {}
    try:
        data = json.loads(path.read_text())
        if data["schema"] != SCHEMA:
            raise PlanError(f"{path}: recorded costs of version {data['schema']}; this reads version {SCHEMA}")
        return dict(data["operators"])
    except (ValueError, KeyError, TypeError) as error:
        raise PlanError(f"{path} does not hold recorded costs: {error!r}") from error


def write(path: Path, entries: Mapping[str, Mapping[str, Any]]) -> None:
    """Keep entries in a file; equal entries give equal bytes."""
    content = {"schema": SCHEMA, "operators": {key: entries[key] for key in sorted(entries)}}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(content, sort_keys=True, indent=1) + "\n")
    temporary.replace(path)
