"""From a spec to a plan: the model traced, and a plan for it found, built or read."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from engines.superscaler.precision import Precision
from harness.api import EnvironmentLacks, PlanError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from emulation.profile import Profile
    from engines.superscaler.graph import Graph
    from engines.superscaler.plan import Plan
    from engines.superscaler.search import Found
    from engines.superscaler.spec import Spec

SPACES = {"search": "full", "data-parallel": "dp"}
"""What the spec calls a plan space -> the search's preset, where they differ."""


@dataclass(frozen=True)
class Job:
    """Everything that decides what a step does."""

    model: str
    size: str
    shape: Mapping[str, Any]
    """With the samples of one micro-batch as `batch`."""
    label: str
    precision: str
    optimizer: str
    verify: str
    plan: Plan
    found: Found | None = field(default=None, compare=False)
    """Of a search that was made in this process: why this plan."""

    def to_json(self) -> dict[str, Any]:
        """JSON values, for a plan's payload."""
        from engines.superscaler import plan_file

        names = ("model", "size", "label", "precision", "optimizer", "verify")
        fields = {name: getattr(self, name) for name in names}
        return {**fields, "shape": dict(self.shape), "plan": plan_file.to_json(self.plan)}

    @classmethod
    def from_json(cls, payload: Mapping[str, Any]) -> Job:
        """The job of a plan's payload."""
        from engines.superscaler import plan_file

        return cls(**{**payload, "plan": plan_file.from_json(payload["plan"])})

    @property
    def samples(self) -> int:
        """Of one step."""
        return int(self.shape["batch"]) * self.plan.micro_batches

    @property
    def graph(self) -> Graph:
        """The model, traced.

        Raises:
            PlanError: the plan was made for another model.
        """
        found = traced(self.model, self.size, tuple(sorted(self.shape.items())))
        if found.digest != self.plan.graph:
            raise PlanError(
                f"the plan is for another {self.model} than {self.size or 'the tiny one'} is now: plan again"
            )
        return found

    @property
    def numbers(self) -> Precision:
        """What a prediction takes numbers to be."""
        return Precision(self.precision)


def build(
    model: str, size: str, shape: Mapping[str, Any], **options: Any
) -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]]:
    """The module and one micro-batch; options are those of `models.build`."""
    from engines.superscaler import models

    return models.preset(model, size, **{**options, **shape}) if size else models.build(model, **options, **shape)


@lru_cache(maxsize=8)
def traced(model: str, size: str, shape: tuple[tuple[str, Any], ...]) -> Graph:
    """The graph of a model, from shapes alone; kept, because a trial plans and then predicts or runs."""
    from engines.superscaler.trace import trace

    module, batch = build(model, size, dict(shape), device="meta")
    return trace(module, batch, name=f"{model} {size}".strip())


def planned(spec: Spec, profile: Profile) -> Job:
    """The job that a spec asks for.

    Raises:
        PlanError: the model has no such size, nothing fits the devices, or they do not divide the model.
    """
    _require(spec.packages())
    shape = {**spec.shape, "batch": spec.global_batch // spec.micro_batches}
    graph = traced(spec.model, spec.size, tuple(sorted(shape.items())))
    found = None
    if spec.plan == "by-hand":
        plan = _by_hand(spec, graph)
    elif spec.plan in _named():
        plan = _built(spec, graph)
    else:
        found = _searched(spec, graph, profile)
        plan = found.plan
    fields = (spec.model, spec.size, shape, spec.label, spec.precision, spec.optimizer, spec.verify, plan)
    return Job(*fields, found=found)


def _require(packages: Sequence[str]) -> None:
    """Say what is not installed before anything is imported.

    Raises:
        EnvironmentLacks: what to install.
    """
    missing = [name for name in ("torch", *packages) if find_spec(name) is None]
    if missing:
        raise EnvironmentLacks(f"planning needs {', '.join(missing)}: pip install 'harness[planning]'")


def _named() -> Sequence[str]:
    from engines.superscaler.spec import NAMED

    return NAMED


def _by_hand(spec: Spec, graph: Graph) -> Plan:
    from engines.superscaler import plan_file

    try:
        return plan_file.from_recipe(spec.by_hand, graph, devices=spec.devices, micro_batches=spec.micro_batches)
    except PlanError as error:
        # The primitives that a recipe is carried out by do not know that a person wrote it.
        raise PlanError(f"by_hand: {str(error).removeprefix('by_hand: ')}") from error


def _built(spec: Spec, graph: Graph) -> Plan:
    from engines.superscaler import named

    given = {name: getattr(spec, name) for name in ("tensor", "pipeline", "data") if getattr(spec, name)}
    options = {"micro_batches": spec.micro_batches, "chunks": spec.chunks, "recompute": spec.recompute, **given}
    if spec.plan == "co-shard":
        options["parts"] = options.pop("chunks")
    return named.build(spec.plan, graph, tuple(range(spec.devices)), **options)


def _searched(spec: Spec, graph: Graph, profile: Profile) -> Found:
    from engines.superscaler.cost.abstract import Abstract
    from engines.superscaler.search import retiming, search

    precision, costs = Precision(spec.precision), Abstract(profile)
    return search(
        graph,
        profile,
        devices=spec.devices,
        space=SPACES.get(spec.plan, spec.plan),
        micro_batches=spec.micro_batches,
        costs=costs,
        precision=precision,
        retime=retiming.emulated(profile, precision, costs.memory(0)),
    )
