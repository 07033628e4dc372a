"""Two processes that train a GPT as torch's own ways of doing so do, and as our plans do, in one run.

Started by path with an order in JSON (`plans`, `shape`, `micro_batches`, `turns`, `timeout`, `out`), from which both
processes are started. Leaves in the file `out` for every plan how far the two are apart after two steps and, of each
turn, the seconds of both: by the clock, and of the processors, which other programs change less.
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from engines.superscaler import models, named, scheduling, trace
from engines.superscaler.dependency import preserve
from engines.superscaler.draft import Draft
from engines.superscaler.projection import project
from engines.superscaler.runtime import reference
from engines.superscaler.runtime.distributed import Groups, Process, run
from engines.superscaler.runtime.interpret import initial, outcome
from engines.superscaler.runtime.interpret import named as by_name
from engines.superscaler.runtime.interpreter import Rank
from engines.superscaler.runtime.optimizer import Optimizer
from engines.superscaler.runtime.outcome import Outcome, compare

STEPS = 2
# A gradient that is zero but for rounding must not decide where Adam moves a weight.
OPTIMIZER = Optimizer(epsilon=1e-4)
PIPELINES = {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B}


class Replicas:
    """The whole module on every rank, which is given its part of the batch."""

    def __init__(self, module: nn.Module, micro_batches: int) -> None:
        self.called = self.module = module

    def step(self, micro_batches):
        """Gradients of a step; the mean loss of each micro-batch."""
        losses = []
        for inputs in micro_batches:
            loss = self.called(*(value.chunk(2)[dist.get_rank()] for value in inputs))
            (loss / len(micro_batches)).backward()
            losses.append(loss.detach())
        return losses

    def mean(self, losses):
        """Over both ranks: each has an equal share of the tokens."""
        together = torch.stack(losses)
        dist.all_reduce(together)
        return (together / 2).tolist()

    def whole(self, value):
        return value.clone()


class Ddp(Replicas):
    def __init__(self, module: nn.Module, micro_batches: int) -> None:
        super().__init__(module, micro_batches)
        self.called = DistributedDataParallel(module)


class Fsdp(Replicas):
    def __init__(self, module: nn.Module, micro_batches: int) -> None:
        super().__init__(module, micro_batches)
        mesh = init_device_mesh("cpu", (2,))
        for layer in module.layers:
            fully_shard(layer, mesh=mesh)
        self.called = fully_shard(module, mesh=mesh)

    def whole(self, value):
        return value.full_tensor().clone()


class Half(nn.Module):
    """One of two stages, its parameters under the names that the whole model has for them."""

    def __init__(self, whole: nn.Module, last: bool) -> None:
        super().__init__()
        middle = len(whole.layers) // 2
        own = range(middle, len(whole.layers)) if last else range(middle)
        self.layers = nn.ModuleDict({str(number): whole.layers[number] for number in own})
        self.last = last
        if last:
            self.norm, self.head = whole.norm, whole.head
        else:
            self.embedding, self.position = whole.embedding, whole.position

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.last:
            x = self.embedding(x) + self.position(torch.arange(x.shape[1]))
        for layer in self.layers.values():
            x = layer(x)
        return self.head(self.norm(x)) if self.last else x


def cross_entropy(scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(scores.transpose(1, 2), targets)


class Pipeline:
    """A stage on each rank."""

    def __init__(self, module: nn.Module, micro_batches: int, schedule) -> None:
        self.rank = dist.get_rank()
        self.module = Half(module, last=self.rank == 1)
        stage = PipelineStage(self.module, self.rank, 2, torch.device("cpu"))
        self.schedule = schedule(stage, micro_batches, loss_fn=cross_entropy)

    def step(self, micro_batches):
        tokens, targets = (torch.cat(values) for values in zip(*micro_batches, strict=True))
        losses: list[torch.Tensor] = []
        if self.rank == 0:
            self.schedule.step(tokens, return_outputs=False)
        else:
            self.schedule.step(target=targets, losses=losses, return_outputs=False)
        return losses

    def mean(self, losses):
        return [float(loss.detach()) for loss in losses]

    def whole(self, value):
        return value.clone()


def torch_way(plan: str, module: nn.Module, micro_batches: int):
    if plan in PIPELINES:
        return Pipeline(module, micro_batches, PIPELINES[plan])
    return {"dp": Ddp, "zero-3": Fsdp}[plan](module, micro_batches)


def trained_by_torch(way, batches) -> Outcome | None:
    """On rank 0 what came of some steps."""
    optimizer = OPTIMIZER.make(way.module.parameters())
    losses, gradients = [], []
    for step in batches:
        optimizer.zero_grad()
        losses.append(way.mean(way.step(step)))
        gradients.append({name: way.whole(value.grad) for name, value in way.module.named_parameters()})
        optimizer.step()
    parameters = {name: way.whole(value.detach()) for name, value in way.module.named_parameters()}
    gathered = [None, None] if dist.get_rank() == 0 else None
    dist.gather_object((losses, gradients, parameters), gathered)
    if gathered is None:
        return None
    (_, first, own), (losses, second, others) = gathered
    return Outcome(losses, [a | b for a, b in zip(first, second, strict=True)], own | others)


def program_of(plan: str, graph, micro_batches: int):
    if plan not in PIPELINES:
        return preserve(graph, named.build(plan, graph, 2, micro_batches=micro_batches))
    # Cut where `Half` is.
    ops = [op.name for op in graph.ops]
    layers = 1 + max(int(name.split(".")[1]) for name in ops if name.startswith("layers."))
    cut = next(number for number, name in enumerate(ops) if name.startswith(f"layers.{layers // 2}."))
    draft = Draft(graph, micro_batches, plan)
    scheduling.assign(draft, ops[:cut], [0], name="first")
    scheduling.assign(draft, ops[cut:], [1], name="last")
    scheduling.order(draft, plan)
    return preserve(graph, draft.plan())


def difference(program, module, way, batches, groups) -> float | None:
    """On rank 0: of an element, over the largest of its kind."""
    held = run(program, module, batches, groups=groups, optimizer=OPTIMIZER)
    gathered = [None, None] if dist.get_rank() == 0 else None
    dist.gather_object(held, gathered)
    expected = trained_by_torch(way, batches)
    if gathered is None:
        return None
    return compare(outcome(program, dict(enumerate(gathered))), expected, float("inf"), floor=1.0).relative


def timed(program, module, way, batches, groups, turns: int) -> dict[str, list[list[float]]]:
    """Seconds of a step of ours and of torch's, each of the rank that took more, turn and turn about."""
    number = dist.get_rank()
    rank = Rank(program, number, project(program, number), OPTIMIZER, dtype=torch.float32)
    rank.place(*initial(module, torch.float32))
    process = Process(rank, groups)
    optimizer = OPTIMIZER.make(way.module.parameters())
    batch = by_name(program, batches[0], torch.float32)

    def ours():
        process.step(batch)
        rank.finish()

    def torchs():
        optimizer.zero_grad()
        way.step(batches[0])
        optimizer.step()

    def seconds(action):
        dist.barrier()
        began, worked = time.perf_counter(), time.process_time()
        action()
        return time.perf_counter() - began, time.process_time() - worked

    ours()
    torchs()
    # Who goes first in a turn alternates: the first finds what the second of the turn before left in the caches.
    pairs = []
    for turn in range(turns):
        first, second = (ours, torchs) if turn % 2 else (torchs, ours)
        taken = {first: seconds(first), second: seconds(second)}
        pairs.append((taken[ours], taken[torchs]))
    most = torch.tensor(pairs, dtype=torch.float64)
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    return {"clock": most[..., 0].tolist(), "processors": most[..., 1].tolist()}


def start(order) -> int:
    """Both ranks, to their end; whether one failed."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    given = [json.dumps({**order, "port": store.port, "rank": rank}) for rank in (0, 1)]
    ranks = [subprocess.Popen([sys.executable, __file__, each]) for each in given]
    try:
        return max(abs(rank.wait(order["timeout"])) for rank in ranks)
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()


def work(order) -> None:
    """One rank."""
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", order["port"])
    dist.init_process_group(
        "gloo", store=store, rank=order["rank"], world_size=2, timeout=timedelta(seconds=order["timeout"])
    )
    groups, found = Groups(), {}
    module, example = models.build("gpt", tied=False, **order["shape"])
    graph = trace.trace(module, example)
    for plan in order["plans"]:
        micro_batches = order["micro_batches"] if plan in PIPELINES else 1
        batches = reference.make_batches(example, STEPS, micro_batches)
        program = program_of(plan, graph, micro_batches)
        groups.prepare(program)
        way = torch_way(plan, copy.deepcopy(module), micro_batches)
        found[plan] = {
            "difference": difference(program, module, way, batches, groups),
            "seconds": timed(program, module, way, batches, groups, order["turns"]) if order["turns"] else {},
        }
    if order["rank"] == 0:
        Path(order["out"]).write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    sys.exit(work(given) if "rank" in given else start(given))
