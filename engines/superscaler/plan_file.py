"""A plan as JSON: canonical, so that equal plans are equal bytes, and readable back.

The operators of a layer that are split alike are named once: ``splits`` maps a split to the operators that have it.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from engines.superscaler.layout import Mesh
from engines.superscaler.plan import Block, Group, Plan, Stage, Weight
from harness.api import PlanError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engines.superscaler.graph import Graph

VERSION = 1


def to_json(plan: Plan) -> dict[str, Any]:
    """JSON values of a plan."""
    return {
        "version": VERSION,
        "graph": plan.graph,
        "name": plan.name,
        "origin": dict(sorted(plan.origin.items())),
        "micro_batches": plan.micro_batches,
        "stages": [_stage(stage) for stage in plan.stages],
        "order": [[block.stage, block.micro_batch, block.what] for block in plan.order],
    }


def from_json(data: Mapping[str, Any]) -> Plan:
    """The plan of what `to_json` made.

    Raises:
        PlanError: it is of another version.
    """
    if data.get("version") != VERSION:
        raise PlanError(f"a plan file of version {data.get('version')!r}; this is version {VERSION}: plan again")
    return Plan(
        data["graph"],
        tuple(_read_stage(stage) for stage in data["stages"]),
        data["micro_batches"],
        tuple(Block(*block) for block in data["order"]),
        data["name"],
        dict(data["origin"]),
    )


def text(plan: Plan) -> str:
    """The file's bytes as text; equal for equal plans."""
    return json.dumps(to_json(plan), sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n"


def digest(plan: Plan) -> str:
    """SHA-256 of the file."""
    return hashlib.sha256(text(plan).encode()).hexdigest()


def _stage(stage: Stage) -> dict[str, Any]:
    split: dict[tuple[str, ...], list[str]] = {}
    for op in stage.ops:
        split.setdefault(stage.splits[op], []).append(op)
    return {
        "name": stage.name,
        "ops": list(stage.ops),
        "devices": list(stage.mesh.devices),
        "mesh": list(stage.mesh.shape),
        "splits": [{"along": list(along), "ops": ops} for along, ops in sorted(split.items())],
        "groups": [
            {"ops": list(group.ops), "parts": group.parts, "splits": dict(sorted(group.splits.items()))}
            for group in stage.groups
        ],
        "weights": {
            name: {"axes": [list(axis) for axis in kept.axes], "gradient": kept.gradient, "value": kept.value}
            for name, kept in sorted(stage.weights.items())
        },
    }


def _read_stage(data: Mapping[str, Any]) -> Stage:
    return Stage(
        data["name"],
        tuple(data["ops"]),
        Mesh(tuple(data["devices"]), tuple(data["mesh"])),
        {op: tuple(split["along"]) for split in data["splits"] for op in split["ops"]},
        tuple(Group(tuple(group["ops"]), group["parts"], dict(group["splits"])) for group in data["groups"]),
        {
            name: Weight(tuple((axis, dim) for axis, dim in kept["axes"]), kept["gradient"], kept["value"])
            for name, kept in data["weights"].items()
        },
    )


def from_recipe(recipe: Mapping[str, Any], graph: Graph, *, devices: int, micro_batches: int = 1) -> Plan:
    """A plan written by hand, as a spec has it; see `recipe`.

    Raises:
        PlanError: a field, a pattern or an axis that does not exist, or a plan that cannot be.
    """
    from engines.superscaler.recipe import read

    return read(recipe, graph, devices=devices, micro_batches=micro_batches)
