"""A plan, typed: what is trained, and which process does which part of it.

Ranks are numbered as in Megatron-LM: tensor-parallel neighbours next to each other (they talk most and belong on one
host), then replicas, then pipeline stages.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engines.megatron.spec import Spec

BYTES = {"fp32": 4, "bf16": 2}


@dataclass(frozen=True)
class Shape:
    """A GPT: pre-normalised layers, learned positions, a feed-forward part four times as wide, an untied output."""

    layers: int
    hidden: int
    heads: int
    sequence: int
    vocabulary: int

    @property
    def parameters(self) -> int:
        """Parameters of the whole model, biases and normalisations included."""
        h = self.hidden
        layer = 12 * h * h + 13 * h
        return self.layers * layer + (2 * self.vocabulary + self.sequence) * h + 2 * h

    def flops(self, sequences: int) -> float:
        """FLOP the model needs for a step over `sequences`, forward and backward, without recomputation.

        Narayanan et al. 2021, equation 3 of section 5.1, with 72 in place of its 96 because nothing is counted twice.
        """
        b, s, l, h, v = sequences, self.sequence, self.layers, self.hidden, self.vocabulary  # noqa: E741
        return 72.0 * b * s * l * h * h * (1 + s / (6 * h) + v / (12 * l * h))


@dataclass(frozen=True)
class Job:
    """Everything that decides what a step does."""

    shape: Shape
    global_batch: int
    micro_batch: int
    tensor: int
    pipeline: int
    data: int
    schedule: str
    recompute: str
    dtype: str
    bucket: int

    @classmethod
    def from_spec(cls, spec: Spec) -> Job:
        """The job a valid spec asks for."""
        names = ("global_batch", "micro_batch", "tensor", "pipeline", "data", "schedule", "recompute", "dtype")
        fields = {name: getattr(spec, name) for name in names}
        return cls(Shape(**spec.shape()), **fields, bucket=int(spec.bucket))

    @classmethod
    def from_json(cls, payload: Mapping[str, Any]) -> Job:
        """The job of a plan's payload."""
        return cls(Shape(**payload["shape"]), **{key: value for key, value in payload.items() if key != "shape"})

    def to_json(self) -> dict[str, Any]:
        """JSON values, for a plan's payload."""
        return asdict(self)

    @property
    def ranks(self) -> int:
        """Processes of the plan."""
        return self.tensor * self.pipeline * self.data

    @property
    def micro_batches(self) -> int:
        """Micro-batches that each replica works on in one step."""
        return self.global_batch // (self.micro_batch * self.data)

    @property
    def stage_layers(self) -> int:
        """Transformer layers of one stage."""
        return self.shape.layers // self.pipeline

    @property
    def label(self) -> str:
        """How tables name the plan: `tp2-pp2-dp1`."""
        return f"tp{self.tensor}-pp{self.pipeline}-dp{self.data}"

    def place(self, rank: int) -> Place:
        """What a rank is."""
        return Place(
            rank,
            tensor=rank % self.tensor,
            data=rank // self.tensor % self.data,
            stage=rank // (self.tensor * self.data),
        )

    def rank(self, *, tensor: int, data: int, stage: int) -> int:
        """The rank at a place."""
        return (stage * self.data + data) * self.tensor + tensor

    def tensor_group(self, place: Place) -> list[int]:
        """Ranks that share the layers of `place`."""
        return [self.rank(tensor=t, data=place.data, stage=place.stage) for t in range(self.tensor)]

    def data_group(self, place: Place) -> list[int]:
        """Ranks that hold the same parameters as `place`."""
        return [self.rank(tensor=place.tensor, data=d, stage=place.stage) for d in range(self.data)]


@dataclass(frozen=True)
class Place:
    """Where a rank stands in the three dimensions."""

    rank: int
    tensor: int
    data: int
    stage: int
