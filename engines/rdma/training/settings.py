"""The fields under `engine: training:` of an `rdma` experiment; light to import."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from emulation.units import Strict
from harness.api import Better, Duration, Metric, MetricKind, Problem

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Size = Literal["full", "small"]
"""`full`: the published model. `small`: the same structure with fewer channels, layers or words."""
TrainedModel = Literal[
    "alexnet", "inception-v3", "vgg-16", "resnet-50", "lstm", "gru", "fcn-5", "bert-base", "gpt2-small",
    "lstm-seq2seq", "cifar", "sentence-embedding",
]  # fmt: skip
Algorithm = Literal["parameter-server", "ring"]

RING_TRANSPORTS = ("zero-copy", "copy", "gloo")
"""Ways for gradients to go round a ring: ours, ours after a copy into registered memory, and gloo's all-reduce."""
SERVER_TRANSPORTS = ("zero-copy", "copy", "rpc-over-rdma", "request-driven", "grpc", "grpc-stream", "tcp")
"""Ways in which parameters and gradients can go to and from a parameter server."""
MOST_WORKERS = 8
FROM_TRANSFORMERS = frozenset({"bert-base", "gpt2-small", "resnet-50"})
"""Models that are built from the configurations of that library."""


class Convergence(Strict):
    """Train until the loss is low enough."""

    target_loss: float = Field(gt=0)
    """Cross entropy, averaged over the latest `window` steps."""
    window: int = Field(default=10, ge=1, le=1000)
    """Steps that the loss is averaged over, as that of one batch is noise."""


class Training(Strict):
    """Data-parallel training: each worker computes gradients of its share of the batch, and all take the same step."""

    model: TrainedModel
    """A model of the paper (AlexNet, Inception-v3, VGG-16, LSTM, GRU, FCN-5), BERT-base, GPT-2, ResNet-50, or one of
    three that are trained to convergence: `lstm-seq2seq`, `cifar`, `sentence-embedding`."""
    size: Size = "small"
    """`full`: the published model, for emulation and real clusters. `small`: trains on two cores."""
    algorithm: Algorithm = "parameter-server"
    """`parameter-server`: one process more holds the parameters; workers pull them and push gradients. `ring`: every
    worker holds them, and gradients are reduced over a ring."""
    workers: int = Field(default=2, ge=1, le=MOST_WORKERS)
    batch: int = Field(default=4, ge=1, le=65536)
    """Samples of each worker in one step."""
    steps: int = Field(default=5, ge=1, le=1_000_000)
    """Training steps; with `convergence`, the most."""
    learning_rate: float = Field(default=0.05, gt=0)
    """Of stochastic gradient descent."""
    momentum: float = Field(default=0.0, ge=0, lt=1)
    reference_steps: int = Field(default=3, ge=0)
    """Steps that are also taken by a single process, to compare losses and parameters with."""
    compute: Duration | None = None
    """Time in which one worker computes the gradients of its share, for emulation; without it, it follows from the
    model's operations and the profile's processors."""
    convergence: Convergence | None = None

    @property
    def ranks(self) -> int:
        """Processes of a real run: the workers, and the parameter server where there is one."""
        return self.workers + (self.algorithm == "parameter-server")

    @property
    def packages(self) -> tuple[str, ...]:
        """Distributions that a real run imports."""
        return ("torch", "transformers") if self.model in FROM_TRANSFORMERS else ("torch",)

    @property
    def samples(self) -> int:
        """Of one step, over all workers."""
        return self.batch * self.workers

    def problems(self, transports: Sequence[str]) -> Iterator[Problem]:
        """What does not fit together; paths start below `engine`."""
        allowed = RING_TRANSPORTS if self.algorithm == "ring" else SERVER_TRANSPORTS
        for index, name in enumerate(transports):
            if name not in allowed:
                yield Problem(
                    ("transports", index), f"algorithm {self.algorithm!r} does not train over {name!r}", _any(allowed)
                )
        if self.convergence and self.convergence.window > self.steps:
            yield Problem(
                ("training", "convergence", "window"),
                f"a window of {self.convergence.window} steps is never full in {self.steps} steps",
                f"at most {self.steps}",
            )


def _any(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + " or " + names[-1]


_LABELS = ("transport",)

METRICS = (
    Metric(
        "train_step_time", "s", MetricKind.TIME, Better.LOWER,
        "One step of training, from the parameters going out (parameter server) or the forward pass (ring) until they "
        "have been updated", _LABELS,
    ),
    Metric(
        "communication_time", "s", MetricKind.TIME, Better.LOWER,
        "The part of a step in which a worker waits for parameters or gradients to move, other workers included; mean "
        "over workers", _LABELS,
    ),
    Metric(
        "samples_per_second", "1/s", MetricKind.RATE, Better.HIGHER,
        "Images, sentences or pairs of the whole batch over the step time", _LABELS,
    ),
    Metric(
        "tokens_per_second", "1/s", MetricKind.RATE, Better.HIGHER,
        "Predicted tokens of the whole batch over the step time; language models only", _LABELS,
    ),
    Metric(
        "scaling_efficiency", "", MetricKind.RATIO, Better.HIGHER,
        "Samples per second over those of one worker with the same share of the batch, per worker; emulated only",
        _LABELS,
    ),
    Metric(
        "final_loss", "", MetricKind.SCORE, Better.LOWER,
        "Cross entropy of the last step's batch, in nats", _LABELS,
    ),
    Metric(
        "loss_difference", "", MetricKind.SCORE, Better.LOWER,
        "Largest difference to the loss of a single process, over `reference_steps`", _LABELS,
    ),
    Metric(
        "parameter_difference", "", MetricKind.SCORE, Better.LOWER,
        "Largest difference of a parameter to that of a single process, after `reference_steps`", _LABELS,
    ),
    Metric(
        "copies_per_edge", "", MetricKind.RATIO, Better.LOWER,
        "Times each payload byte was copied in user space per edge and step, both ends together, after the first step; "
        "counted where the copy is made", _LABELS,
    ),
    Metric(
        "steps_to_loss", "", MetricKind.COUNT, Better.LOWER,
        "Steps until the averaged loss is at the target", _LABELS,
    ),
    Metric(
        "time_to_loss", "s", MetricKind.TIME, Better.LOWER,
        "Training time until the averaged loss is at the target", _LABELS,
    ),
)  # fmt: skip
"""What a training job adds to the engine's metrics."""
