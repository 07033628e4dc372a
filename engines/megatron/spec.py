"""The fields under `engine:` of a `megatron` experiment.

One trial is one *plan*: a GPT of some shape, a batch, and the degrees of tensor, pipeline and data parallelism. Sweep
the degrees to compare plans. Names follow Narayanan et al., "Efficient Large-Scale Language Model Training on GPU
Clusters Using Megatron-LM" (SC'21), whose section 2 describes what is done here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from harness.api import Better, Bytes, EngineSpec, Metric, MetricKind, Problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ModelName = Literal["gpt-tiny", "gpt-small", "gpt3-175b", "custom"]
DIMENSIONS = ("layers", "hidden", "heads", "sequence", "vocabulary")
PRESETS: dict[str, dict[str, int]] = {
    "gpt-tiny": {"layers": 4, "hidden": 64, "heads": 4, "sequence": 32, "vocabulary": 256},
    "gpt-small": {"layers": 8, "hidden": 256, "heads": 8, "sequence": 128, "vocabulary": 2048},
    "gpt3-175b": {"layers": 96, "hidden": 12288, "heads": 96, "sequence": 2048, "vocabulary": 51200},
}
"""GPT-3's layers, width, heads and sequence are those of the 175-billion-parameter rows of the vTrain measurements; its
vocabulary is GPT-2's 50,257, padded to a multiple of 1,024. The other two are ours, sized for processor cores."""

_LABELS = ("plan",)


class Spec(EngineSpec):
    """Train a GPT for some steps under one parallel plan, and time a step."""

    name: Literal["megatron"] = "megatron"
    model: ModelName = "gpt-tiny"
    """A preset; any of `layers` to `vocabulary` that is given takes the place of the preset's. `custom` needs all."""
    layers: int | None = Field(default=None, ge=1, le=10_000)
    """Transformer layers."""
    hidden: int | None = Field(default=None, ge=1, le=1_000_000)
    """Width of the residual stream; the feed-forward part is four times as wide."""
    heads: int | None = Field(default=None, ge=1, le=10_000)
    """Attention heads of one layer."""
    sequence: int | None = Field(default=None, ge=1, le=10_000_000)
    """Tokens of one sequence."""
    vocabulary: int | None = Field(default=None, ge=2, le=10_000_000)
    """Different tokens (padded, as it is sharded)."""
    global_batch: int = Field(default=8, ge=1, le=10_000_000)
    """Sequences in one step, over all replicas."""
    micro_batch: int = Field(default=1, ge=1, le=1_000_000)
    """Sequences that pass through a stage at a time."""
    tensor: int = Field(default=1, ge=1, le=1024)
    """Tensor-parallel degree: processes that share every layer."""
    pipeline: int = Field(default=1, ge=1, le=1024)
    """Pipeline-parallel degree: stages that the layers are divided into."""
    data: int = Field(default=1, ge=1, le=65536)
    """Data-parallel degree: replicas, each with its part of the batch."""
    schedule: Literal["1f1b", "gpipe"] = "1f1b"
    """`1f1b`: as soon as a stage has done its warm-up, one forward then one backward pass in turn, so that it keeps no
    more micro-batches than there are stages. `gpipe`: all forward passes, then all backward ones."""
    recompute: Literal["none", "full"] = "none"
    """`full`: keep only each layer's input, and run its forward pass again in the backward pass."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Of activations and matrix products. Parameters, gradients and Adam's moments are kept in fp32."""
    bucket: Bytes = Field(default=40_000_000, ge=4)
    """Gradients are summed over the replicas in pieces of at most this size."""

    VERSION: ClassVar[str] = "1"
    METRICS: ClassVar[tuple[Metric, ...]] = (
        Metric(
            "step_time", "s", MetricKind.TIME, Better.LOWER,
            "One training step, forward to optimizer, of the slowest process", _LABELS,
        ),
        Metric(
            "tokens_per_second", "1/s", MetricKind.RATE, Better.HIGHER,
            "Tokens of the global batch over the step time", _LABELS,
        ),
        Metric(
            "model_flops", "FLOP/s", MetricKind.RATE, Better.HIGHER,
            "Operations the model needs, without recomputation, per second and device", _LABELS,
        ),
        Metric(
            "utilisation", "", MetricKind.RATIO, Better.HIGHER,
            "Model FLOP/s over the profile's peak for the dtype (MFU)", _LABELS,
        ),
        Metric(
            "peak_memory", "B", MetricKind.BYTES, Better.LOWER,
            "Most device memory that was held at once, on the device with the most; real runs report it on GPUs alone",
            _LABELS,
        ),
        Metric(
            "bubble_fraction", "", MetricKind.RATIO, Better.LOWER,
            "Share of the step that a process waits for its pipeline neighbours or for the last to end, averaged over "
            "processes; plans with a pipeline only", _LABELS,
        ),
        Metric(
            "loss", "", MetricKind.SCORE, Better.LOWER,
            "Cross-entropy of the first step, in nats per token; equal for every plan", _LABELS,
        ),
        Metric(
            "gradient_error", "", MetricKind.RATIO, Better.LOWER,
            "Largest difference to the gradients of one process, over the largest gradient of the same parameter",
            _LABELS,
        ),
    )  # fmt: skip

    def ranks(self) -> int:
        """One process for every device of the plan."""
        return self.tensor * self.pipeline * self.data

    def shape(self) -> dict[str, int]:
        """Layers, hidden, heads, sequence and vocabulary; zero where nothing says."""
        preset = PRESETS.get(self.model, {})
        given = {name: getattr(self, name) for name in DIMENSIONS}
        return {name: given[name] or preset.get(name, 0) for name in DIMENSIONS}

    def check(self) -> Iterable[Problem]:
        """What does not divide."""
        shape = self.shape()
        missing = [name for name in DIMENSIONS if not shape[name]]
        for name in missing:
            yield Problem((name,), f"model 'custom' needs {name!r}", "a number, or a preset under `model`")
        if not missing:
            yield from self._divisions(shape)
        yield from self._batches()

    def _divisions(self, shape: dict[str, int]) -> Iterator[Problem]:
        if shape["hidden"] % shape["heads"]:
            what = f"a width of {shape['hidden']} cannot be divided among {shape['heads']} heads"
            field = "heads" if self.heads or not self.hidden else "hidden"
            yield Problem((field,), what, _one_of(divisor_near(shape["hidden"], shape["heads"]), "heads"))
        for name in ("heads", "vocabulary"):
            if shape[name] % self.tensor:
                what = f"{shape[name]} {_PLURAL[name]} cannot be divided among {self.tensor} tensor-parallel processes"
                yield Problem(("tensor",), what, _one_of(divisor_near(shape[name], self.tensor), "tensor"))
        if shape["layers"] % self.pipeline:
            what = f"{shape['layers']} layers cannot be divided into {self.pipeline} equal stages"
            yield Problem(("pipeline",), what, _one_of(divisor_near(shape["layers"], self.pipeline), "pipeline"))

    def _batches(self) -> Iterator[Problem]:
        together = self.micro_batch * self.data
        if self.global_batch % together:
            near = _multiples_near(self.global_batch, together)
            what = (
                f"a batch of {self.global_batch} cannot be divided into micro-batches of {self.micro_batch} "
                f"on {self.data} replicas"
            )
            yield Problem(("global_batch",), what, _one_of(near, "global_batch"))


_PLURAL = {"heads": "heads", "vocabulary": "tokens of the vocabulary"}


def divisor_near(number: int, wanted: int) -> list[int]:
    """The divisors of `number` next below and next above `wanted`."""
    divisors = _divisors(number)
    below = [d for d in divisors if d <= wanted][-1:]
    above = [d for d in divisors if d > wanted][:1]
    return below + above


def _divisors(number: int) -> list[int]:
    small = [d for d in range(1, int(number**0.5) + 1) if number % d == 0]
    return sorted({*small, *(number // d for d in small)})


def _multiples_near(number: int, of: int) -> list[int]:
    below = number // of * of
    return [multiple for multiple in (below, below + of) if multiple]


def _one_of(values: list[int], name: str) -> str:
    return f"{name}: " + " or ".join(map(str, values))
