"""The process groups of a plan, as one rank sees them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from engines.megatron.tensor_parallel import Shard

if TYPE_CHECKING:
    from engines.megatron.plan import Job, Place


@dataclass(frozen=True)
class Channel:
    """One direction between two neighbouring stages: a group of its own, so that the two never wait for each other."""

    peer: int
    group: dist.ProcessGroup


@dataclass
class ParallelState:
    """Where this rank stands, and whom it talks to; groups are `None` where they would have one member."""

    place: Place
    device: torch.device
    shard: Shard = field(default_factory=Shard)
    replicas: dist.ProcessGroup | None = None
    from_previous: Channel | None = None
    to_previous: Channel | None = None
    from_next: Channel | None = None
    to_next: Channel | None = None


def join(job: Job, rank: int, device: torch.device) -> ParallelState:
    """Make every group of the plan; all ranks call this, and make all groups in one order."""
    state = ParallelState(job.place(rank), device)
    for number in range(job.ranks):
        _share_layers(job, state, number)
        _share_gradients(job, state, number)
    for number in range(job.ranks):
        _neighbours(job, state, number)
    return state


def _share_layers(job: Job, state: ParallelState, number: int) -> None:
    ranks = job.tensor_group(job.place(number))
    if len(ranks) > 1 and number == ranks[0]:
        group = dist.new_group(ranks)
        if state.place.rank in ranks:
            state.shard = Shard(group, state.place.tensor, job.tensor)


def _share_gradients(job: Job, state: ParallelState, number: int) -> None:
    ranks = job.data_group(job.place(number))
    if len(ranks) > 1 and number == ranks[0]:
        group = dist.new_group(ranks)
        if state.place.rank in ranks:
            state.replicas = group


def _neighbours(job: Job, state: ParallelState, number: int) -> None:
    place = job.place(number)
    if place.stage + 1 == job.pipeline:
        return
    following = job.rank(tensor=place.tensor, data=place.data, stage=place.stage + 1)
    activations, gradients = dist.new_group([number, following]), dist.new_group([number, following])
    if state.place.rank == number:
        state.to_next, state.from_next = Channel(following, activations), Channel(following, gradients)
    elif state.place.rank == following:
        state.from_previous, state.to_previous = Channel(number, activations), Channel(number, gradients)
