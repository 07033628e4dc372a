"""Pipeline schedules as data: the order in which a stage takes its micro-batches forward and backward.

A schedule says nothing about time. With p stages and m micro-batches:

``gpipe``        all forward, then all backward (Huang et al., GPipe, 2019): m micro-batches are kept
``1f1b``         a warm-up of p - 1 - stage forward passes, then one forward, one backward in turn (Narayanan et al.,
                 PipeDream, SOSP'19, and SC'21): at most p - stage micro-batches are kept
``interleaved``  each stage holds v chunks of layers, one behind the other around the pipeline, and takes groups of p
                 micro-batches through them in turn (SC'21, section 2.2): a bubble of 1/v, and v times the transfers
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

Name = Literal["gpipe", "1f1b", "interleaved"]
NAMES: tuple[Name, ...] = ("gpipe", "1f1b", "interleaved")


@dataclass(frozen=True, slots=True)
class Pass:
    """One micro-batch through one chunk of a stage's layers."""

    direction: Literal["forward", "backward"]
    micro_batch: int
    chunk: int = 0


Schedule = tuple[tuple[Pass, ...], ...]
"""Of each stage, in order."""


def schedule(name: Name, stages: int, micro_batches: int, chunks: int = 1) -> Schedule:
    """The passes of each stage.

    Raises:
        ValueError: a number below one, chunks in a schedule that has none, or an interleaved one whose micro-batches
            are not a multiple of its stages.
    """
    if min(stages, micro_batches, chunks) < 1:
        raise ValueError(
            f"a pipeline needs at least one stage, micro-batch and chunk; not {stages}, {micro_batches}, {chunks}"
        )
    if name != "interleaved" and chunks != 1:
        raise ValueError(
            f"a {name} schedule has one chunk of layers on each stage, not {chunks}; 'interleaved' has several"
        )
    if name == "gpipe":
        return tuple(_gpipe(micro_batches) for _ in range(stages))
    if name == "1f1b":
        return tuple(_one_forward_one_backward(stage, stages, micro_batches) for stage in range(stages))
    if micro_batches % stages:
        raise ValueError(
            f"an interleaved schedule takes micro-batches in groups of one per stage: "
            f"{micro_batches} is not a multiple of {stages}"
        )
    return tuple(_interleaved(stage, stages, micro_batches, chunks) for stage in range(stages))


def most_kept(passes: Sequence[Pass]) -> int:
    """The most (micro-batch, chunk) pairs that are between their forward and their backward pass at once."""
    kept = most = 0
    for step in passes:
        kept += 1 if step.direction == "forward" else -1
        most = max(most, kept)
    return most


def _gpipe(micro_batches: int) -> tuple[Pass, ...]:
    forward = [Pass("forward", number) for number in range(micro_batches)]
    return tuple(forward + [Pass("backward", number) for number in range(micro_batches)])


def _one_forward_one_backward(stage: int, stages: int, micro_batches: int) -> tuple[Pass, ...]:
    forward = [Pass("forward", number) for number in range(micro_batches)]
    backward = [Pass("backward", number) for number in range(micro_batches)]
    return _alternating(forward, backward, min(stages - 1 - stage, micro_batches))


def _interleaved(stage: int, stages: int, micro_batches: int, chunks: int) -> tuple[Pass, ...]:
    total = micro_batches * chunks
    turns = [divmod(number, stages * chunks) for number in range(total)]
    order = [(group * stages + place % stages, place // stages) for group, place in turns]
    forward = [Pass("forward", micro_batch, chunk) for micro_batch, chunk in order]
    backward = [Pass("backward", micro_batch, chunks - 1 - chunk) for micro_batch, chunk in order]
    # Megatron-LM's warm-up: two passes for each later stage, and all chunks but the last once for a group.
    warm_up = total if chunks > 1 and micro_batches == stages else 2 * (stages - 1 - stage) + (chunks - 1) * stages
    return _alternating(forward, backward, min(warm_up, total))


def _alternating(forward: list[Pass], backward: list[Pass], warm_up: int) -> tuple[Pass, ...]:
    passes = forward[:warm_up]
    for first, second in zip(forward[warm_up:], backward, strict=False):
        passes += [first, second]
    return tuple(passes + backward[len(forward) - warm_up :])
