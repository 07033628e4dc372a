"""Named schedules as data: an order of all blocks of a step, without times.

With S stages that each have devices of their own, and M micro-batches:

``forward_only``     every micro-batch forward, nothing backward
``gpipe``            all forward, then all backward (Huang et al., GPipe, NeurIPS 2019): M micro-batches are kept
``one_f_one_b``      1F1B (Narayanan et al., PipeDream, SOSP 2019; SC 2021): stage s keeps at most S - s
``zero_bubble``      ZB-H1 (Qi et al., Zero Bubble Pipeline Parallelism, ICLR 2024): the weights' half of a backward
                     pass fills the bubbles; no stage keeps more than S

With several stages on the same devices:

``interleaved``      stage n on group n mod G (Narayanan et al., SC 2021): a smaller bubble for more transfers
``zero_bubble_v``    ZB-V (ibid., section 6): stages run down the groups and up again, two on each group
``recycling``        3F1B: passes of one module, one behind the other around the groups, and only the last backward
                     (recycling in AlphaFold2; nnScaler, OSDI 2024)
``interlaced``       1F1B whose shared stages (a huge embedding, the head) lie on all devices and run between the
                     passes of the others (nnScaler's interlaced pipeline)

Each stage reads from the one before it. That any of these fits a plan is for `check` to say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from emulation.workloads.schedule import schedule
from engines.superscaler.order.merge import merge
from engines.superscaler.order.pipeline import Pipeline
from engines.superscaler.plan import Block
from harness.api import PlanError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from emulation.workloads.schedule import Name
    from engines.superscaler.order.pipeline import Passes
    from engines.superscaler.plan import Pass

Order = tuple[Block, ...]


def looped(stages: int, groups: int) -> tuple[int, ...]:
    """Group of devices of each stage when stages go around the groups: `interleaved` and `recycling`."""
    if groups < 1 or stages % groups:
        raise PlanError(f"{stages} stages cannot go around {groups} groups of devices: it is not a multiple")
    return tuple(stage % groups for stage in range(stages))


def folded(stages: int) -> tuple[int, ...]:
    """Group of devices of each stage when stages go down the groups and up again: `zero_bubble_v`."""
    if stages < 2 or stages % 2:
        raise PlanError(f"a V has two stages on each group of devices; {stages} is not an even number of stages")
    return tuple(min(stage, stages - 1 - stage) for stage in range(stages))


def forward_only(stages: int, micro_batches: int) -> Order:
    """Every micro-batch through every stage, for inference."""
    lists = [[Block(stage, m, "F") for m in range(micro_batches)] for stage in range(stages)]
    return _merged(range(stages), micro_batches, "F", lists)


def gpipe(stages: int, micro_batches: int) -> Order:
    """All forward passes, then all backward passes; makespan (M + S - 1)(f + b)."""
    return _known("gpipe", stages, stages, micro_batches)


def one_f_one_b(stages: int, micro_batches: int) -> Order:
    """A warm-up of S - 1 - s forward passes, then one forward and one backward in turn; as long as `gpipe`."""
    return _known("1f1b", stages, stages, micro_batches)


def interleaved(stages: int, micro_batches: int, chunks: int) -> Order:
    """1F1B where each group of devices has `chunks` of the stages (see `looped`).

    Raises:
        PlanError: stages are not a multiple of chunks, or micro-batches not of the groups.
    """
    if chunks < 1 or stages % chunks:
        raise PlanError(f"{stages} stages cannot be {chunks} on each group of devices: it is not a multiple")
    groups = stages // chunks
    if micro_batches % groups:
        raise PlanError(
            f"an interleaved schedule takes micro-batches in rounds of one for each of its {groups} groups of devices: "
            f"{micro_batches} micro-batches is not a multiple; the nearest are "
            f"{max(1, micro_batches // groups) * groups} and {(micro_batches // groups + 1) * groups}"
        )
    return _known("interleaved", stages, groups, micro_batches)


def zero_bubble(stages: int, micro_batches: int) -> Order:
    """ZB-H1: 1F1B's warm-up, and stage s puts off the weights' halves of s micro-batches.

    With passes of equal length the makespan is 3M + S - 1 if M >= S (1F1B: 3(M + S - 1)).
    """
    lists = []
    for stage in range(stages):
        own = _Counted(micro_batches)
        for _ in range(stages - stage):
            own.put(stage, "F")
        while own.done(stage, "B") < micro_batches:
            own.put(stage, "B")
            if own.done(stage, "B") > own.done(stage, "W") + stage:
                own.put(stage, "W")
            own.put(stage, "F")
        while own.done(stage, "W") < micro_batches:
            own.put(stage, "W")
        lists.append(own.blocks)
    return _merged(range(stages), micro_batches, "FBW", lists)


def zero_bubble_v(stages: int, micro_batches: int) -> Order:
    """ZB-V: two stages on each of G groups (see `folded`).

    With passes of equal length the makespan is 6M + G - 1 if M >= 2G, and no group keeps more than 2G (stage,
    micro-batch) pairs: as much as 1F1B does, whose stages are twice as large.
    """
    group = folded(stages)
    groups = stages // 2
    full = max(micro_batches, 2 * groups - 1)  # as many as fill it; those beyond `micro_batches` are left out
    lists = []
    for down in range(groups):
        up = stages - 1 - down
        own = _Counted(micro_batches, full)
        own.put(down, "F" * (2 * (groups - down) - 1))
        for _ in range(down):
            own.put(up, "F")
            own.put(down, "F")
        for _ in range(groups - down):
            own.put(up, "FBW")
        while own.done(up, "F") < full:
            own.put(down, "FBW")
            own.put(up, "FBW")
        for _ in range(down):
            own.put(down, "B")
            own.put(up, "B")
        for _ in range(groups - down):
            own.put(down, "BW")
        for stage in (up, down):
            own.put(stage, "W" * (full - own.done(stage, "W")))
        lists.append(own.blocks)
    return _merged(group, micro_batches, "FBW", lists)


def recycling(stages: int, micro_batches: int, passes: int = 3) -> Order:
    """`passes` forward passes per backward pass (3F1B): see `looped`; only the last pass's stages have a B.

    Work goes in rounds of one block of each kind. In a round, a later pass is so many micro-batches behind the one
    before that this one has gone around, if a backward pass takes as long as two forward passes. Then nobody waits in
    the steady state, and of the last pass's stages the s-th keeps S - s micro-batches, as in 1F1B.
    """
    if passes < 1 or stages % passes:
        raise PlanError(f"{stages} stages are not the same number for each of {passes} passes")
    groups = stages // passes
    behind = -(-(groups - 1) // (passes + 2))
    rounds = micro_batches + (passes - 1) * behind + groups - 1
    lists: list[list[Block]] = []
    for place in range(groups):
        own = []
        for number in range(rounds):
            own += [Block(p * groups + place, number - p * behind, "F") for p in range(passes)]
            own.append(Block((passes - 1) * groups + place, number - (passes - 1) * behind - (groups - 1 - place), "B"))
        lists.append([block for block in own if 0 <= block.micro_batch < micro_batches])
    kinds: list[Passes] = ["F"] * (stages - groups) + ["FB"] * groups
    return _merged(looped(stages, groups), micro_batches, kinds, lists)


def interlaced(stages: int, micro_batches: int, shared: Collection[int]) -> Order:
    """1F1B in lockstep, with the stages in `shared` on all devices and each other one on devices of its own.

    Work goes in rounds: all devices' forward passes at once, then all backward passes, and the shared stages' passes
    before, between and behind them, where they need or make what those do. A round is as long as the longest stage's
    passes and the shared ones' together. The s-th of S own stages keeps 2(S - 1 - s) + 1 micro-batches.

    Raises:
        PlanError: a shared stage that does not exist, or no other stage.
    """
    wrong = sorted(stage for stage in shared if not 0 <= stage < stages)
    if wrong or len(set(shared)) == stages:
        raise PlanError(
            f"shared stages {sorted(shared)} of {stages}: "
            + (f"there is no stage {wrong[0]}" if wrong else "at least one must have devices of its own")
        )
    own = stages - len(set(shared))
    ahead = [0] * stages  # own stages before each stage
    for stage in range(1, stages):
        ahead[stage] = ahead[stage - 1] + (stage - 1 not in shared)
    turns: list[tuple[tuple[int, int, int], int, int, Pass]] = []
    """((phase of a round, place in it, 0), rounds behind the first, stage, pass)."""
    for stage in range(stages):
        before = ahead[stage]
        if stage not in shared:
            turns.append(((1, before, 0), before, stage, "F"))
            turns.append(((3, -before, 0), 2 * (own - 1) - before, stage, "B"))
            continue
        forward = (0, before, stage) if before < own else (2, 0, stage)
        backward = (4, -before, -stage) if before < own else (2, 1, -stage)
        turns.append((forward, min(before, own - 1), stage, "F"))
        turns.append((backward, 2 * (own - 1) - min(before, own - 1), stage, "B"))
    turns.sort()
    return tuple(
        Block(stage, number - behind, what)
        for number in range(micro_batches + 2 * (own - 1))
        for _, behind, stage, what in turns
        if 0 <= number - behind < micro_batches
    )


class _Counted:
    """A device's list that numbers micro-batches by itself: the next one of a stage and pass."""

    def __init__(self, micro_batches: int, full: int | None = None) -> None:
        self._micro_batches, self._full = micro_batches, full or micro_batches
        self._done: dict[tuple[int, str], int] = {}
        self.blocks: list[Block] = []

    def put(self, stage: int, passes: str) -> None:
        for what in passes:
            number = self.done(stage, what)
            if number == self._full:
                continue
            self._done[stage, what] = number + 1
            if number < self._micro_batches:
                self.blocks.append(Block(stage, number, what))  # type: ignore[arg-type]

    def done(self, stage: int, what: str) -> int:
        return self._done.get((stage, what), 0)


def _known(name: Name, stages: int, groups: int, micro_batches: int) -> Order:
    """A schedule that other engines have as well."""
    if min(stages, micro_batches) < 1:
        raise PlanError(f"a pipeline needs at least one stage and one micro-batch, not {stages} and {micro_batches}")
    lists = [
        [Block(each.chunk * groups + group, each.micro_batch, each.direction[0].upper()) for each in passes]  # type: ignore[arg-type]
        for group, passes in enumerate(schedule(name, groups, micro_batches, stages // groups))
    ]
    return _merged(looped(stages, groups), micro_batches, "FB", lists)


def _merged(
    group: Sequence[int], micro_batches: int, passes: Passes | Sequence[Passes], lists: Sequence[Sequence[Block]]
) -> Order:
    pipeline = Pipeline.chain([(number,) for number in group], micro_batches, passes)
    return merge(pipeline, dict(enumerate(lists)))
