"""Pipeline schedules as data: in which order a stage does its forward and backward passes."""

from __future__ import annotations

from typing import Literal, NamedTuple


class Pass(NamedTuple):
    """One micro-batch through one stage."""

    kind: Literal["forward", "backward"]
    micro_batch: int


def schedule(kind: str, *, stage: int, stages: int, micro_batches: int) -> list[Pass]:
    """The passes of one stage, in order (Narayanan et al. 2021, section 2.2, figures 3 and 4).

    `gpipe` does all forward passes before the first backward one, and keeps all micro-batches' activations. `1f1b`
    lets a stage run ahead by as many forward passes as there are stages after it, then does one of each in turn.
    """
    ahead = micro_batches if kind == "gpipe" else min(stages - stage - 1, micro_batches)
    passes = [Pass("forward", n) for n in range(ahead)]
    for done in range(micro_batches):
        if ahead + done < micro_batches:
            passes.append(Pass("forward", ahead + done))
        passes.append(Pass("backward", done))
    return passes


def held(kind: str, *, stage: int, stages: int, micro_batches: int) -> int:
    """Micro-batches whose activations a stage keeps at once, at most."""
    kept = most = 0
    for step in schedule(kind, stage=stage, stages=stages, micro_batches=micro_batches):
        kept += 1 if step.kind == "forward" else -1
        most = max(most, kept)
    return most
