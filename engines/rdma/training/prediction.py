"""What a training step would take on a cluster one does not have.

A step of a parameter server is one graph: the transport's own graph of a payload (`engines.rdma.lowering`) from the
server to every worker, the workers' computing, the same back with gradients, and the server's update. Edges run side by
side, share the links between hosts, and have a thread each at either end. A ring is ``2 (workers - 1)`` rounds in which
every worker passes a chunk on; adding one piece overlaps the next one's way.

Computing takes three times the operations of a forward pass (`costs`): a backward pass computes gradients of inputs and
of weights. They are shared out evenly over as many kernels as the model has tensors, forward and twice backward, each
at the rate that the profile has for a kernel of that size. What moves little and computes less (activation functions,
normalisation) is not counted, so that models full of it come out too fast. `compute` in a spec takes its place.

With accelerators, parameters and gradients also cross between them and the host's memory; transports that would reach
the accelerator's memory themselves (GPUDirect) are not modelled. The server is a host of its own if there are enough;
ranks take hosts in turn.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from emulation.graph import Workload
from engines.rdma import lowering
from engines.rdma.training import costs
from harness.api import EnvironmentLacks, Measurement

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from emulation.evaluate import Result
    from emulation.figures import Grade
    from emulation.profile import Profile
    from engines.rdma.tensors import Payload
    from engines.rdma.training.plan import Job
    from harness.api import EmulationContext

PASSES = 3
"""Operations of a step over those of its forward pass."""
DTYPE = "fp32"
MESSAGE_COPIES = {"grpc": 0.5, "grpc-stream": 0.5, "rpc-over-rdma": 0.5, "tcp": 0.5}
"""Copies per edge that training adds to a transport's: a parameter out of a message (one of the two edges), or a
gradient to the place from which it is sent."""
RING_COPIES = {"zero-copy": 0, "copy": 1}


class TrainingGraph:
    """Builds the graph of one step of a job on a profile."""

    def __init__(self, job: Job, profile: Profile) -> None:
        self.job, self.profile = job, profile
        self.costs = costs.load(job.training.model, job.training.size)
        hosts = profile.host_names()
        self.hosts = [hosts[rank % len(hosts)] for rank in range(job.training.ranks)]

    def step(self, transport: str) -> Workload:
        """One step over a transport.

        Raises:
            EnvironmentLacks: it has one-sided writes and the profile none.
        """
        work = Workload(f"{transport} {self.job.training.model}")
        if self.job.has_server:
            self._served(work, transport)
        else:
            self._ring(work, transport)
        return work

    def compute(self, rank: int) -> tuple[float, Grade]:
        """Seconds in which a worker computes gradients of its share, and how well they are known."""
        if self.job.training.compute is not None:
            return self.job.training.compute, "measured"
        host = self.profile.host(f"{self.hosts[rank]}/cpu")
        model = self.profile.models[host.devices[0].model if host.devices else host.cpu]
        throughput = model.compute.get(DTYPE)
        if throughput is None:
            raise EnvironmentLacks(f"profile {self.profile.name!r} does not say how fast {DTYPE} is; give `compute`")
        kernels = PASSES * len(self.costs.elements)
        each = PASSES * self.costs.flops * self.job.training.batch / kernels
        launch = 0.0 if model.kind == "cpu" else model.launch.value
        return kernels * (launch + each / throughput.rate(each)), throughput.grade_at(each)

    def _served(self, work: Workload, transport: str) -> None:
        server, gradients = self._cpu(0), []
        for rank in self.job.workers:
            payload = self.costs.payload(f"parameters of rank {rank}")
            pulled = self._edge(work, transport, payload, server, self._cpu(rank), ())
            computed = self._computing(work, rank, pulled)
            payload = self.costs.payload(f"gradients of rank {rank}")
            gradients += self._edge(work, transport, payload, self._cpu(rank), server, computed)
        # Reads every worker's gradient and the parameter, writes the parameter.
        self._pass_over(work, server, self.job.training.workers + 1, gradients, "update")

    def _edge(
        self, work: Workload, transport: str, payload: Payload, source: str, target: str, after: Sequence[int]
    ) -> list[int]:
        """A payload's way over a transport; the nodes that end it."""
        edge = lowering.Lowering(self.profile)
        edge.source, edge.target, edge.one_host = source, target, source == target
        part = edge.step(transport, payload, "static")
        return splice(work, part, after, label=payload.name)

    def _ring(self, work: Workload, transport: str) -> None:
        workers, chunk = self.job.training.workers, -(-self.costs.nbytes // self.job.training.workers)
        held: dict[int, list[int]] = {}
        for rank in self.job.workers:
            held[rank] = self._computing(work, rank, ())
            if transport == "copy":
                held[rank] = [self._pass_over(work, self._cpu(rank), 1, held[rank], "copy gradients")]
        for turn in range(2 * (workers - 1)):
            came: dict[int, list[int]] = {}
            for rank in self.job.workers:
                right = (rank + 1) % workers
                came[right] = self._pass_on(work, rank, right, chunk, held[rank], turn)
            if turn < workers - 1:
                for rank in self.job.workers:
                    came[rank] = [self._pass_over(work, self._cpu(rank), 1 / workers, came[rank], "add")]
            held = came
        for rank in self.job.workers:
            self._pass_over(work, self._cpu(rank), 2, held[rank], "update")

    def _pass_on(self, work: Workload, rank: int, right: int, chunk: int, after: Sequence[int], turn: int) -> list[int]:
        source, target = self._cpu(rank), self._cpu(right)
        one_sided = self.profile.host(source).software.one_sided
        if one_sided is None:
            raise EnvironmentLacks(f"profile {self.profile.name!r} has no one-sided writes, which a ring is made of")
        post, seen = one_sided.post, one_sided.completion
        name = f"round {turn} of rank {rank}"
        # Posting and polling wait for different things, so each has its own queue.
        posted = work.host(
            source, post.value, after=after, name=f"post {name}", stream=f"posts of rank {rank}", grade=post.grade
        )
        options = {"cap": self._memcpy(source, chunk)} if source == target else {}
        sent = work.transfer(source, target, chunk, after=[posted], name=name, **options)
        lane = f"polls of rank {right}"
        return [work.host(target, seen.value, after=[sent], name="poll", stream=lane, grade=seen.grade)]

    def _computing(self, work: Workload, rank: int, after: Sequence[int]) -> list[int]:
        seconds, grade = self.compute(rank)
        device, cpu = self._device(rank), self._cpu(rank)
        if device != cpu and after:
            after = [work.transfer(cpu, device, self.costs.nbytes, after=after, name=f"parameters to device {rank}")]
        done = work.host(device, seconds, after=after, name=f"compute {rank}", stream=f"rank {rank}", grade=grade)
        if device != cpu:
            done = work.transfer(device, cpu, self.costs.nbytes, after=[done], name=f"gradients to host {rank}")
        return [done]

    def _pass_over(self, work: Workload, cpu: str, times: float, after: Sequence[int], name: str) -> int:
        """One core goes over the parameters, or something as large."""
        nbytes = int(times * self.costs.nbytes)
        grade = self.profile.host(cpu).software.memcpy.peak.grade
        return work.host(cpu, nbytes / self._memcpy(cpu, nbytes), after=after, name=name, stream=name, grade=grade)

    def _memcpy(self, cpu: str, nbytes: int) -> float:
        return self.profile.host(cpu).software.memcpy.rate(nbytes)

    def _cpu(self, rank: int) -> str:
        return f"{self.hosts[rank]}/cpu"

    def _device(self, rank: int) -> str:
        """Where a rank computes: the next accelerator of its host, or the processor."""
        groups = self.profile.host(self._cpu(rank)).devices
        if not groups:
            return self._cpu(rank)
        before = sum(1 for other in self.job.workers if other < rank and self.hosts[other] == self.hosts[rank])
        return f"{self.hosts[rank]}/{groups[0].name}{before % groups[0].count}"


def splice(work: Workload, part: Workload, after: Sequence[int], *, label: str) -> list[int]:
    """Put a graph into another; its first nodes come after `after`, its streams get threads of their own.

    Returns:
        The nodes that nothing in the part comes after.
    """
    place: dict[int, int] = {}
    last: set[int] = set()
    for node, earlier in zip(part.nodes, part.predecessors(), strict=True):
        stream = f"{label}: {node.stream}" if node.stream else ""
        place[node.id] = work.append(replace(node, stream=stream), [place[n] for n in earlier] or after)
        last -= {place[n] for n in earlier}
        last.add(place[node.id])
    return sorted(last)


def predict(job: Job, context: EmulationContext) -> Iterator[Measurement]:
    """The metrics of a real run, from the profile of `context`.

    Raises:
        EnvironmentLacks: the profile lacks what the transports need, or no transport has a model.
        HarnessError: the loss did not come down to its target.
    """
    steps = _steps_to_loss(job, context.repeat.seed) if job.training.convergence else None
    for transport in _modelled(job):
        yield from _predict(job, transport, context, steps)


def _modelled(job: Job) -> list[str]:
    known = lowering.COPIES if job.has_server else RING_COPIES
    absent = [name for name in job.transports if name not in known]
    if absent:
        sys.stderr.write(f"not predicted, for want of a cost model: {', '.join(absent)}\n")
    if len(absent) == len(job.transports):
        raise EnvironmentLacks(f"no cost model for {', '.join(absent)}; a prediction needs one of {', '.join(known)}")
    return [name for name in job.transports if name in known]


def _predict(job: Job, transport: str, context: EmulationContext, steps: int | None) -> Iterator[Measurement]:
    graph, labels, training = TrainingGraph(job, context.profile), {"transport": transport}, job.training
    result = context.simulate(graph.step(transport), name=f"{transport} {training.model} x {training.workers}")
    low, high = result.band(result.seconds)
    yield Measurement("train_step_time", result.seconds, labels, (low, high))
    computing = max(graph.compute(rank)[0] for rank in job.workers)
    idle = [max(seconds - computing, 0.0) for seconds in (result.seconds, low, high)]
    yield Measurement("communication_time", idle[0], labels, (idle[1], idle[2]))
    rates = [("samples_per_second", training.samples)]
    if graph.costs.unit == "tokens":
        rates.append(("tokens_per_second", training.samples * graph.costs.units))
    for name, units in rates:
        yield Measurement(name, units / result.seconds, labels, (units / high, units / low))
    if training.workers > 1:
        yield _efficiency(job, transport, context, result)
    if training.steps > 1:
        copies = lowering.COPIES[transport] + MESSAGE_COPIES.get(transport, 0.0)
        yield Measurement("copies_per_edge", copies if job.has_server else RING_COPIES[transport], labels)
    if steps is not None:
        yield Measurement("steps_to_loss", steps, labels)
        yield Measurement("time_to_loss", steps * result.seconds, labels, (steps * low, steps * high))


def _efficiency(job: Job, transport: str, context: EmulationContext, result: Result) -> Measurement:
    """Against one worker with the same share: as many samples per worker and second would be an efficiency of one."""
    alone = replace(job, training=job.training.model_copy(update={"workers": 1}))
    graph = TrainingGraph(alone, context.profile)
    single = context.simulate(graph.step(transport), name=f"{transport} {job.training.model} x 1")
    low, high = result.band(result.seconds)
    best = single.seconds
    return Measurement("scaling_efficiency", best / result.seconds, {"transport": transport}, (best / high, best / low))


def _steps_to_loss(job: Job, seed: int) -> int:
    """Counted by training for real, in this process: what a step computes does not depend on what it takes."""
    import torch

    from engines.rdma.training import reference
    from engines.rdma.training.plan import steps_to_loss

    torch.set_num_threads(1)
    training = job.training
    found = reference.train(
        training.model,
        training.size,
        batch=training.samples,
        steps=training.steps,
        learning_rate=training.learning_rate,
        momentum=training.momentum,
        seed=seed,
        shares=training.workers,
    )
    return steps_to_loss(training, found.losses)
