"""Aceso's recorded profiles: operators, collectives and messages on V100 (Liu et al., EuroSys 2024, artifact)."""

from __future__ import annotations

import bisect
import csv
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.api import PlanError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

LAYERS: Mapping[str, int] = {"350M": 24, "1_3B": 24, "2_6B": 32, "6_7B": 32, "13B": 40}
"""Of each GPT, from the artifact's model table."""
EMBEDDING, NORM, HEAD = "encoder-embedding", "final-layernorm", "gpt-post-process"
ATTENTION = (
    "enc-1st-layernorm",
    "enc-attention-qkv",
    "enc-attention-score",
    "enc-attention-softmax",
    "enc-attention-dropout",
    "enc-attention-context",
    "enc-attention-dense",
    "enc-post-attention-dropout",
)
FEED_FORWARD = ("enc-2nd-layernorm", "enc-MLP-GEMM-1", "enc-MLP-gelu", "enc-MLP-GEMM-2", "enc-post-MLP-dropout")


@dataclass(frozen=True)
class Timing:
    """One operator at one micro-batch and degree. Times include the collectives of tensor parallelism."""

    forward: float
    """Microseconds, as is `backward`."""
    backward: float
    input: float
    """Megabytes, as all that follows; with what is passed by (a residual)."""
    weights: float
    activations: float
    """Kept for the backward pass, with space that operators share counted once."""
    forward_reserved: float
    backward_reserved: float


@dataclass(frozen=True)
class Profile:
    """The tables of one model."""

    model: str
    operators: Mapping[tuple[int, int, str], Timing]
    """(micro-batch, tensor-parallel degree, operator) -> its timing, by the first algorithm."""
    all_reduce: Mapping[int, tuple[tuple[float, float], ...]]
    """Members -> (megabytes, milliseconds), rising."""
    within_node: tuple[tuple[float, float], ...]
    """(megabytes, GB/s) of messages, rising, as is `between_nodes`."""
    between_nodes: tuple[tuple[float, float], ...]

    def message(self, megabytes: float, *, across: bool) -> float:
        """Microseconds of a message, at the bandwidth of the largest measured size that is no larger."""
        if megabytes <= 0:
            return 0.0
        table = self.between_nodes if across else self.within_node
        place = max(0, bisect.bisect_right([size for size, _ in table], megabytes) - 1)
        return megabytes / table[place][1] * 1e3

    def gradients(self, megabytes: float, members: int) -> float:
        """Microseconds to all-reduce gradients; beyond the table at the rate of its largest size.

        Raises:
            PlanError: no group of so many was measured.
        """
        if members == 1 or not megabytes:
            return 0.0
        if members not in self.all_reduce:
            raise PlanError(
                f"{self.model}: the profile has no all-reduce of {members}, only of {sorted(self.all_reduce)}"
            )
        table = self.all_reduce[members]
        place = min(bisect.bisect_left([size for size, _ in table], megabytes), len(table) - 1)
        size, milliseconds = table[place]
        return milliseconds * megabytes / size * 1e3


def read(folder: Path, model: str) -> Profile:
    """The profile of a model, from the tables where they lie.

    Args:
        folder: With gpt_ops.csv, gpt_collectives.csv and the two p2p tables.
        model: A key of `LAYERS`.

    Raises:
        PlanError: the tables have nothing on the model.
    """
    operators = {}
    with (folder / "gpt_ops.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if row["model"] != model or row["algorithm"] != "0":
                continue
            name = row["op_name"]
            # Softmax writes where the scores were, and dropout keeps the result beside its mask.
            shared = {"enc-attention-softmax": 0.0, "enc-attention-dropout": 1.5}.get(name, 1.0)
            operators[int(row["micro_batch"]), int(row["tensor_parallel"]), name] = Timing(
                forward=float(row["forward-compute"]),
                backward=float(row["backward-compute"]),
                input=float(row["input_size"]),
                weights=float(row["weights"]),
                activations=float(row["activations"]) * shared,
                forward_reserved=float(row["fwd_reserved"]),
                backward_reserved=float(row["bwd_reserved"]),
            )
    if not operators or model not in LAYERS:
        raise PlanError(f"no profile of {model!r}; there are {', '.join(LAYERS)}")
    sums: dict[int, dict[float, float]] = {}
    with (folder / "gpt_collectives.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if row["model"] == model and row["collective"] == "all_reduce":
                members = int(row["file_suffix"].removesuffix("gpus"))
                sums.setdefault(members, {})[float(row["data_size(MB)"])] = float(row["time(ms)"])
    return Profile(
        model=model,
        operators=operators,
        all_reduce={members: tuple(sorted(table.items())) for members, table in sums.items()},
        within_node=_bandwidths(folder / "p2p_intra_node.csv"),
        between_nodes=_bandwidths(folder / "p2p_inter_node.csv"),
    )


def _bandwidths(path: Path) -> tuple[tuple[float, float], ...]:
    with path.open(newline="") as file:
        sizes, rates = csv.reader(file)
    return tuple(zip(map(float, sizes), map(float, rates), strict=True))
