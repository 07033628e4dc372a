"""The fields under `engine:` of a `superscaler` experiment.

One trial plans one model for some devices one way: found by a search, built by name from the three primitives, or
written by hand. The plan is proven before it is run or predicted. Sweep `plan` to compare.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from harness.api import Better, EngineSpec, Metric, MetricKind, Problem, nearest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

ModelName = Literal["gpt", "t5", "swin", "evoformer", "resnet", "mlp", "moe"]
SPACES = ("search", "data-parallel", "megatron-3d", "alpa-like", "autodist-like", "deepspeed-like")
"""Plan spaces that are searched: all that this engine has (`search`), or what another system looks through."""
NAMED = (
    "dp", "zero-1", "zero-2", "zero-3", "tp", "sp", "ep", "gpipe", "1f1b", "interleaved", "zero-bubble", "co-shard",
    "interlaced", "3f1b", "hybrid",
)  # fmt: skip
"""Plans that are built, not searched, out of op-trans, op-assign and op-order."""
PLANS = (*SPACES, *NAMED, "by-hand")


class Spec(EngineSpec):
    """Plan a model for some devices, prove the plan, and run or predict a training step of it."""

    name: Literal["superscaler"] = "superscaler"
    model: ModelName = "gpt"
    """What is trained: an ordinary torch module of `engines.superscaler.models`, traced as it is."""
    size: str = Field(default="", max_length=40)
    """A published size (`1.3B`, `32-512-16`); empty: the tiny one, which is checked in seconds."""
    shape: dict[str, int | float | bool] = Field(default_factory=dict, max_length=20)
    """Sizes in place of the preset's (`layers`, `hidden`, `batch`, ...)."""
    devices: int = Field(default=2, ge=1, le=65536)
    """Accelerators, or processes where there are none."""
    plan: str = "search"
    """A plan space to search (`search`: everything), a plan by name (`1f1b`), or `by-hand`; sweep it to compare."""
    global_batch: int = Field(default=16, ge=1, le=10_000_000)
    """Samples of one step."""
    micro_batches: int = Field(default=2, ge=1, le=1_000_000)
    """Parts that the batch is worked on in, one after another or along a pipeline. The samples of each are divided
    among replicas."""
    tensor: int = Field(default=0, ge=0, le=1024)
    """Tensor-parallel degree of a named plan; 0: as the plan sees fit."""
    pipeline: int = Field(default=0, ge=0, le=1024)
    """Stages of a named plan; 0: as the plan sees fit."""
    data: int = Field(default=0, ge=0, le=65536)
    """Replicas of a named plan; 0: as the plan sees fit."""
    chunks: int = Field(default=2, ge=1, le=64)
    """Stages on each device of an interleaved plan, and parts of a co-sharded operator."""
    recompute: bool = False
    """Whether a named plan keeps only what enters a layer, and computes the layer again in the backward pass."""
    by_hand: dict[str, Any] = Field(default_factory=dict)
    """The plan that `plan: by-hand` means: stages, splits, order; see the engine's README."""
    precision: Literal["", "fp32", "fp16", "bf16", "fp64"] = ""
    """What a prediction takes numbers to be; empty: fp32, which real runs on processors compute in."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """Adam keeps two moments for each parameter."""
    verify: Literal["none", "static", "interpret"] = "interpret"
    """How far a plan is proven before anything runs. `static`: every value that is read is complete and nothing waits
    for ever (L0 to L2). `interpret`: also computes two steps in float64, all ranks in one process, and holds outputs,
    gradients and parameters to one device's (L3); models too large for that are proven at a tiny size. `none` is for
    plans that cannot be proven."""

    VERSION: ClassVar[str] = "1"
    METRICS: ClassVar[tuple[Metric, ...]] = (
        Metric("step_time", "s", MetricKind.TIME, Better.LOWER, "One training step of the slowest rank"),
        Metric(
            "samples_per_second", "1/s", MetricKind.RATE, Better.HIGHER, "Samples of the batch over the step time"),
        Metric(
            "peak_memory", "B", MetricKind.BYTES, Better.LOWER,
            "Most bytes of values that a device holds at once, on the device with the most"),
        Metric(
            "bubble_fraction", "", MetricKind.RATIO, Better.LOWER,
            "Share of the step in which a device neither computes nor takes part in a collective, on average"),
        Metric(
            "sent", "B", MetricKind.BYTES, Better.LOWER,
            "Bytes that a rank sends in a step, on the rank that sends most; predicted ones must be these exactly"),
        Metric(
            "difference", "", MetricKind.RATIO, Better.LOWER,
            "Largest difference of a loss, gradient or parameter to one device's after two steps, over the largest "
            "element of its tensor; real runs only"),
        Metric(
            "loss", "", MetricKind.SCORE, Better.LOWER, "Mean loss of the first step; equal for every plan"),
    )  # fmt: skip

    def ranks(self) -> int:
        """A process for every device."""
        return self.devices

    def packages(self) -> tuple[str, ...]:
        """What planning needs beside torch."""
        return ("networkx", "numpy", "highspy", "ortools")

    def check(self) -> Iterable[Problem]:
        """What does not go together."""
        if self.plan not in PLANS:
            near = nearest(self.plan, PLANS)
            hint = f"; did you mean {near!r}?" if near else ""
            yield Problem(("plan",), f"there is no plan {self.plan!r}{hint}", f"one of {', '.join(PLANS)}")
        if self.global_batch % self.micro_batches:
            near_by = _divisors_near(self.global_batch, self.micro_batches)
            what = f"a batch of {self.global_batch} cannot be divided into {self.micro_batches} equal micro-batches"
            yield Problem(("micro_batches",), what, " or ".join(map(str, near_by)))
        yield from self._degrees()
        if bool(self.by_hand) != (self.plan == "by-hand"):
            field = "plan" if self.by_hand else "by_hand"
            yield Problem((field,), "`plan: by-hand` and `by_hand` go together", "both, or neither")
        elif self.by_hand:
            yield from _stages(self.by_hand)

    def _degrees(self) -> Iterator[Problem]:
        given = {name: getattr(self, name) for name in ("tensor", "pipeline", "data") if getattr(self, name)}
        if given and self.plan not in NAMED:
            what = f"{self.plan!r} chooses its own degrees"
            yield Problem((next(iter(given)),), what, f"no {' and '.join(given)}, or a named plan such as 1f1b")
            return
        product = 1
        for degree in given.values():
            product *= degree
        if self.devices % product:
            what = f"{' x '.join(f'{name} {degree}' for name, degree in given.items())} do not divide {self.devices}"
            yield Problem((next(iter(given)),), f"{what} devices", f"degrees whose product divides {self.devices}")

    @property
    def label(self) -> str:
        """How tables name the plan."""
        degrees = [f"{name[0]}p{getattr(self, name)}" for name in ("tensor", "pipeline", "data") if getattr(self, name)]
        return "-".join([self.plan, *degrees])


def _stages(by_hand: Mapping[str, Any]) -> Iterator[Problem]:
    """What is no plan by its form alone; whether it fits the model is found when it is traced."""
    stages = by_hand.get("stages")
    if not stages:
        yield Problem(("by_hand",), "a plan by hand has no stages", "`stages`, a list of {ops, devices, axes, name}")
    elif not isinstance(stages, list):
        yield Problem(("by_hand", "stages"), f"stages are {stages!r}", "a list of {ops, devices, axes, name}")
    else:
        for number, stage in enumerate(stages):
            yield from _stage(stage, ("by_hand", "stages", number))
        yield from _axes(by_hand, [stage for stage in stages if isinstance(stage, dict)])


def _stage(stage: Any, place: tuple[str | int, ...]) -> Iterator[Problem]:
    if not isinstance(stage, dict):
        yield Problem(place, f"a stage is {stage!r}", "{ops, devices, axes, name}")
        return
    ops, axes = stage.get("ops"), stage.get("axes", {})
    patterns = [ops] if isinstance(ops, str) else ops
    if not isinstance(patterns, list) or not patterns or not all(isinstance(one, str) for one in patterns):
        yield Problem((*place, "ops"), f"operators are {ops!r}", 'patterns of names such as ["layers.0.*"]')
    if not isinstance(axes, dict) or not all(isinstance(degree, int) for degree in axes.values()):
        yield Problem((*place, "axes"), f"axes are {axes!r}", "names with degrees such as {data: 1, tensor: 2}")


def _axes(by_hand: Mapping[str, Any], stages: list[dict[str, Any]]) -> Iterator[Problem]:
    """Axes that something is split along although no stage has them."""
    known = {axis for stage in stages if isinstance(stage.get("axes"), dict) for axis in stage["axes"]}
    known |= {"devices" for stage in stages if not stage.get("axes")}
    for field in ("splits", "weights"):
        entries = by_hand.get(field)
        for number, entry in enumerate(entries if isinstance(entries, list) else ()):
            axis = entry.get("axis") if isinstance(entry, dict) else None
            if axis is not None and known and axis not in known:
                near = nearest(str(axis), known)
                hint = f"; did you mean {near!r}?" if near else ""
                what = f"no stage has an axis {axis!r}{hint}"
                yield Problem(("by_hand", field, number, "axis"), what, f"one of {', '.join(sorted(known))}")


def _divisors_near(number: int, wanted: int) -> list[int]:
    divisors = [d for d in range(1, number + 1) if number % d == 0] if number <= 10**6 else [1]
    below, above = [d for d in divisors if d <= wanted][-1:], [d for d in divisors if d > wanted][:1]
    return below + above
