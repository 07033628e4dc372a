"""What each rank of a training job does in a real run.

For every transport in turn: all ranks build the same model from the same seed, connect, and train; rank 0 collects what
the others measured. Then rank 0 alone takes the first steps once more in a single process and compares.
"""

from __future__ import annotations

import json
import time
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from engines.rdma.device import ProviderUnavailable
from engines.rdma.executor import Executor
from engines.rdma.placement import PeerLost
from engines.rdma.session import Session, boot_id
from engines.rdma.training import models, reference
from engines.rdma.training.parameter_server import Server
from engines.rdma.training.plan import Job, steps_to_loss
from engines.rdma.training.ranks import Surroundings, capacity, put_together
from engines.rdma.training.replica import payload_of
from harness.api import EnvironmentLacks, Measurement, retain_freed_memory

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from engines.rdma.device import Device
    from engines.rdma.executor import Operation
    from engines.rdma.training.ranks import Rank
    from harness.api import Rendezvous, RunContext

PAUSE_SECONDS = 0.0005
"""Between two looks at the rendezvous, which may be a file or a call to another host."""


PATIENCE = 20
"""Times of giving way in vain after which a rank sleeps instead."""
NAP_SECONDS = 0.0001
CHECK_SECONDS = 0.5
"""Between two looks at whether the neighbours still live."""
SPINS = 8


class PatientExecutor(Executor):
    """Polls for a while, then sleeps between looks.

    Ranks of a training job wait for one another's computing, which takes milliseconds, and on a small machine they
    share its cores: one that polls takes from those it waits for. (Two workers and a server on two cores: 2 to 3 times
    as long with polling alone.)
    """

    _vain = 0
    _next_check = 0.0

    def turn(self) -> bool:
        """Look at every operation once."""
        moved = super().turn()
        if moved:
            self._vain = 0
        return moved

    def give_way(self) -> None:
        """Let others work; in the long run, by sleeping."""
        super().give_way()
        self._vain += 1
        if self._vain > PATIENCE:
            time.sleep(NAP_SECONDS)
            # By the clock: a nap may take a thousand times as long where many want the processor.
            if time.monotonic() > self._next_check:
                self.check()
                self._next_check = time.monotonic() + CHECK_SECONDS


class RendezvousBoard:
    """The harness's rendezvous, looked at without waiting."""

    def __init__(self, rendezvous: Rendezvous) -> None:
        self._rendezvous = rendezvous

    def post(self, key: str, value: str) -> None:
        """Publish, once."""
        self._rendezvous.set(f"training/{key}", value)

    def find(self, key: str) -> str | None:
        """What was published, or None yet."""
        try:
            return self._rendezvous.get(f"training/{key}", timeout=0.0)
        except TimeoutError:
            time.sleep(PAUSE_SECONDS)
            return None


@dataclass
class Report:
    """What one rank measured."""

    steps: list[float]
    communication: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    copied: int = 0
    """Bytes, after the first step."""
    gradients: Any = None
    """What the analyzer found."""


@dataclass
class Result:
    """What rank 0 knows when training over one transport has ended."""

    reports: Sequence[Report]
    payload_bytes: int
    parameters: Mapping[str, torch.Tensor]
    """After `reference_steps`."""


def run(job: Job, context: RunContext) -> Iterator[Measurement]:
    """Train over every transport, on this rank; rank 0 yields.

    Raises:
        PeerLost: a rank ended, with its number.
        EnvironmentLacks: a transport's library is absent, or the hosts have no device of the provider.
        HarnessError: the loss did not come down to its target.
    """
    # A step allocates what the last one freed; faulting it in anew would time the kernel.
    retain_freed_memory()
    torch.set_num_threads(1)
    results: dict[str, Result] = {}
    for transport in job.transports:
        with context.span(f"train over {transport}"):
            result = train(job, transport, context)
        if result is not None:
            results[transport] = result
            yield from _measurements(job, transport, result, context.repeat.warmup)
    if context.rank == 0 and job.training.reference_steps:
        yield from _compare(job, results, context.repeat.seed)


def train(job: Job, transport: str, context: RunContext) -> Result | None:
    """Train over one transport; rank 0 gets the result, when every rank has given its report.

    Raises:
        PeerLost: a rank ended, with its number.
    """
    board = RendezvousBoard(context.rendezvous)
    with ExitStack() as stack:
        device = _open_device(job, transport, context)
        if device is not None:
            stack.callback(device.close)
        around = Surroundings(context.rank, board, device)
        stack.callback(around.close)
        around.session = partial(_session, job, transport, context)
        if transport == "gloo":
            around.reduce = _join_gloo(context)
        try:
            report, parameters = _live(job, transport, context, around)
            context.rendezvous.set(_key(transport, "report", context.rank), json.dumps(asdict(report)))
            reports = _collect(job, transport, around) if context.rank == 0 else []
            # Nobody closes what another rank may still look at.
            context.rendezvous.barrier(f"training/{transport}/end", timeout=job.timeout)
        except (PeerLost, TimeoutError) as error:
            raise _lost(transport, context, around, error) from error
    nbytes = payload_of(job.training.model, job.training.size).nbytes
    return Result(reports, nbytes, parameters) if context.rank == 0 else None


def _key(transport: str, what: str, rank: int) -> str:
    return f"training/{transport}/{what}{rank}"


def _live(
    job: Job, transport: str, context: RunContext, around: Surroundings
) -> tuple[Report, Mapping[str, torch.Tensor]]:
    device = around.device or around.waker
    executor = PatientExecutor(device, timeout=job.timeout, alive=around.alive, spins=SPINS)
    task = executor.submit(life(job, transport, context.repeat.seed, around))
    executor.run()
    return task.result


def life(
    job: Job, transport: str, seed: int, around: Surroundings
) -> Operation[tuple[Report, Mapping[str, torch.Tensor]]]:
    """All that a rank does: connect, and take every step; its report, and the parameters after `reference_steps`."""
    rank: Rank = yield from put_together(job, transport, seed, around)
    parameters: Mapping[str, torch.Tensor] = {}
    before = 0
    for number in range(1, job.training.steps + 1):
        yield from rank.step(number)
        if number == 1:
            before = around.copied()
        if number == job.training.reference_steps:
            named = zip(rank.replica.names, rank.replica.parameters, strict=True)
            parameters = {name: value.detach().clone() for name, value in named}
    losses = [] if isinstance(rank, Server) else rank.losses
    copied = around.copied() - before
    return Report(rank.times.steps, rank.times.communication, losses, copied, rank.replica.report()), parameters


def _collect(job: Job, transport: str, around: Surroundings) -> list[Report]:
    """Every rank's report, in order."""
    found = []
    for rank in range(job.training.ranks):
        waited = 0.0
        while (text := around.board.find(f"{transport}/report{rank}")) is None:
            waited += PAUSE_SECONDS
            if waited > job.timeout or rank in around.gone():
                raise PeerLost(f"rank {rank} did not report on {transport}")
        found.append(Report(**json.loads(text)))
    return found


def _lost(transport: str, context: RunContext, around: Surroundings, error: BaseException) -> PeerLost:
    """Say which rank was lost, and leave word for those who see only that this one has ended."""
    gone = around.gone()
    for rank in gone:
        with suppress(TimeoutError):
            # The neighbour may have ended because it lost another: that one is the cause.
            cause = context.rendezvous.get(_key(transport, "lost", rank), timeout=0.2)
            with suppress(ValueError):
                context.rendezvous.set(_key(transport, "lost", context.rank), cause)
            return PeerLost(f"rank {cause} was lost while training over {transport}: {error}")
    if not gone:
        return PeerLost(f"training over {transport}: {error}")
    with suppress(ValueError):
        context.rendezvous.set(_key(transport, "lost", context.rank), str(gone[0]))
    return PeerLost(f"rank {gone[0]} was lost while training over {transport}: {error}")


def _open_device(job: Job, transport: str, context: RunContext) -> Device | None:
    """This rank's device; every rank learns if one has none.

    Raises:
        EnvironmentLacks: one of the ranks has no such device; the message says what is missing where.
    """
    payload = payload_of(job.training.model, job.training.size)
    nbytes = capacity(job, transport, payload, context.rank)
    if not nbytes:
        return None
    ranks, board = range(job.training.ranks), context.rendezvous
    board.set(_key(transport, "host", context.rank), boot_id())
    hosts = {board.get(_key(transport, "host", rank), timeout=job.timeout) for rank in ranks}
    provider = ("shm" if len(hosts) == 1 else "verbs") if job.provider == "auto" else job.provider
    device, problem = None, ""
    try:
        from engines.rdma.providers import open_device

        device = open_device(provider, nbytes)
    except ProviderUnavailable as error:
        problem = str(error)
    board.set(_key(transport, "problem", context.rank), problem)
    problems = {rank: board.get(_key(transport, "problem", rank), timeout=job.timeout) for rank in ranks}
    lacking = [f"rank {rank}: {text}" for rank, text in problems.items() if text]
    if lacking:
        raise EnvironmentLacks(f"provider {provider!r} cannot be used: {'; '.join(lacking)}")
    return device


def _session(job: Job, transport: str, context: RunContext, source: int, target: int) -> Session:
    """The connection of an edge: its source is rank 0 of it, its target rank 1."""
    return Session(_EdgeContext(context, transport, source, target), job.timeout)  # type: ignore[arg-type]


class _EdgeContext:
    """An edge's two ranks as if they were all."""

    def __init__(self, context: RunContext, transport: str, source: int, target: int) -> None:
        self.rank = 0 if context.rank == source else 1
        self.address = context.address
        self._prefix, self._board = f"training/{transport}/{source}-{target}", context.rendezvous

    @property
    def rendezvous(self) -> _EdgeContext:
        """Itself: keys are put under the edge's name."""
        return self

    def set(self, key: str, value: str) -> None:
        """Publish."""
        self._board.set(f"{self._prefix}/{key}", value)

    def get(self, key: str, timeout: float = 30.0) -> str:
        """Wait for a key."""
        return self._board.get(f"{self._prefix}/{key}", timeout=timeout)


def _join_gloo(context: RunContext) -> Any:
    import torch.distributed as dist

    if not dist.is_initialized():
        context.init_process_group("gloo")
    return dist.all_reduce


def _measurements(job: Job, transport: str, result: Result, warmup: int) -> Iterator[Measurement]:
    labels, training = {"transport": transport}, job.training
    skipped = min(warmup, training.steps - 1)
    workers = [result.reports[rank] for rank in job.workers]
    times = result.reports[0].steps[skipped:]
    yield Measurement("train_step_time", times, labels)
    communication = [sum(parts) / len(parts) for parts in zip(*(w.communication for w in workers), strict=True)]
    yield Measurement("communication_time", communication[skipped:], labels)
    for name, units in throughput(job):
        yield Measurement(name, [units / seconds for seconds in times], labels)
    losses = mean_losses(workers)
    yield Measurement("final_loss", losses[-1], labels)
    if training.steps > 1:
        edges = training.workers * (2 if job.has_server else 1)
        copied = sum(report.copied for report in result.reports)
        yield Measurement("copies_per_edge", copied / (edges * (training.steps - 1) * result.payload_bytes), labels)
    if training.convergence:
        steps = steps_to_loss(training, losses)
        yield Measurement("steps_to_loss", steps, labels)
        yield Measurement("time_to_loss", sum(result.reports[0].steps[:steps]), labels)


def mean_losses(workers: Sequence[Report]) -> list[float]:
    """Loss of the whole batch in each step."""
    return [sum(parts) / len(parts) for parts in zip(*(worker.losses for worker in workers), strict=True)]


def throughput(job: Job) -> Iterator[tuple[str, float]]:
    """(metric, what to divide by the step time in seconds to get it)."""
    yield "samples_per_second", float(job.training.samples)
    task = models.variant(job.training.model, job.training.size).task
    if task.unit == "tokens":
        yield "tokens_per_second", float(job.training.samples * task.units_per_sample)


def _compare(job: Job, results: Mapping[str, Result], seed: int) -> Iterator[Measurement]:
    """Against a single process, over the first steps."""
    training = job.training
    steps = min(training.reference_steps, training.steps)
    expected = reference.train(
        training.model,
        training.size,
        batch=training.samples,
        steps=steps,
        learning_rate=training.learning_rate,
        momentum=training.momentum,
        seed=seed,
        shares=training.workers,
    )
    for transport, result in results.items():
        losses = mean_losses([result.reports[rank] for rank in job.workers])
        differences = [abs(a - b) for a, b in zip(losses[:steps], expected.losses, strict=True)]
        yield Measurement("loss_difference", max(differences), {"transport": transport})
        if steps == training.reference_steps:
            largest = max(float((result.parameters[n] - v).abs().max()) for n, v in expected.parameters.items())
            yield Measurement("parameter_difference", largest, {"transport": transport})
