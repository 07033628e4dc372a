"""What the ranks of a test do; imported by name in their processes."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
import torch.distributed as dist

from engines.megatron import reference, tensor_parallel
from engines.megatron.parallel_state import join
from engines.megatron.tensor_parallel import Shard
from harness.api import HarnessError


def start(rank, world, folder, name, arguments, answers):
    """Join the others, do the task, and say what it returned."""
    torch.set_num_threads(1)
    store = dist.FileStore(str(Path(folder) / "store"), world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    try:
        answers.put((rank, TASKS[name](rank, world, *arguments)))
    finally:
        dist.barrier()
        dist.destroy_process_group()


def agree(rank, world, jobs):
    """Each job's agreement with one process: (loss, gradient error)."""
    found = []
    for job in jobs:
        done = reference.check(job, join(job, rank, torch.device("cpu")), seed=0)
        found.append((done.loss, done.gradient_error))
    return found


def sabotaged(rank, world, job):
    """The message of a check of layers that forget to sum their input's gradients."""
    tensor_parallel.CopyToGroup.backward = staticmethod(lambda ctx, gradient: (gradient, None))
    try:
        reference.check(job, join(job, rank, torch.device("cpu")), seed=0)
    except HarnessError as error:
        return str(error)
    return ""


def layers(rank, world):
    """Sharded layers beside whole ones: for each, the largest difference of output, input and weight gradients."""
    shard = Shard(dist.group.WORLD, rank, world)
    torch.manual_seed(0)
    x = torch.randn(3, 5, 8)
    found = {}
    for name in ("column then row", "embedding", "cross-entropy"):
        results = [CASES[name](part, x) for part in (shard, Shard())]
        found[name] = max(float((a - b).abs().max()) for a, b in zip(*results, strict=True))
    return found


def _block(shard, x):
    column = tensor_parallel.ColumnParallelLinear("up", 8, 16, shard, 0)
    row = tensor_parallel.RowParallelLinear("down", 16, 8, shard, 0)
    x = x.clone().requires_grad_()
    output = row(torch.relu(column(x)))
    output.square().sum().backward()
    own = [_whole(p.grad, p.divided_along, shard) for p in (*column.parameters(), *row.parameters())]
    return [output.detach(), x.grad, *own]


def _embedding(shard, x):
    table = tensor_parallel.VocabularyParallelEmbedding("table", 12, 8, shard, 0)
    output = table(torch.arange(24).reshape(2, 12) % 12)
    output.square().sum().backward()
    return [output.detach(), _whole(table.weight.grad, 0, shard)]


def _loss(shard, x):
    logits = x.reshape(-1, 8).repeat(1, 2).mul(torch.linspace(-3, 3, 16))
    part = logits.chunk(shard.count, -1)[shard.index].clone().requires_grad_()
    targets = torch.arange(15)
    if shard.group is None:
        loss = torch.nn.functional.cross_entropy(part, targets)
    else:
        loss = tensor_parallel.VocabularyParallelCrossEntropy.apply(part, targets, shard)
    (3 * loss).backward()
    return [loss.detach(), _whole(part.grad, 1, shard)]


def _whole(part, dim, shard):
    if shard.group is None or dim is None:
        return part
    parts = [torch.empty_like(part) for _ in range(shard.count)]
    dist.all_gather(parts, part.contiguous())
    return torch.cat(parts, dim)


CASES = {"column then row": _block, "embedding": _embedding, "cross-entropy": _loss}
TASKS = {"agree": agree, "sabotaged": sabotaged, "layers": layers}


def on_ranks(context, world, name, *arguments):
    """What every rank's task returned, by rank."""
    with tempfile.TemporaryDirectory() as folder:
        answers = context.SimpleQueue()
        order = [(rank, world, folder, name, arguments, answers) for rank in range(world)]
        processes = [context.Process(target=start, args=one, daemon=True) for one in order]
        for process in processes:
            process.start()
        for process in processes:
            process.join(100)
        assert [process.exitcode for process in processes] == [0] * world
        return dict(sorted(answers.get() for _ in range(world)))
