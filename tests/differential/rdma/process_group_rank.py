"""One rank of a comparison of backends: `python process_group_rank.py '<JSON>'`; what it finds goes to a file."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from engines.rdma.training import models, process_group


def collectives(rank, size):
    """Results of every collective, on tensors that the rank decides."""
    generator = torch.Generator().manual_seed(rank)
    found = {}

    def random(*shape, dtype=torch.float32):
        if dtype.is_floating_point:
            return torch.randn(shape, generator=generator, dtype=dtype)
        return torch.randint(-9, 9, shape, generator=generator, dtype=dtype)

    for dtype in (torch.float32, torch.float64, torch.int64):
        for name, op in (("sum", dist.ReduceOp.SUM), ("min", dist.ReduceOp.MIN), ("max", dist.ReduceOp.MAX)):
            tensor = random(7, 3, dtype=dtype)
            dist.all_reduce(tensor, op=op)
            found[f"all_reduce {name} {dtype}"] = tensor
    transposed = random(5, 4).t()
    dist.all_reduce(transposed)
    found["all_reduce of a transposed tensor"] = transposed
    large = random(3_000_000)
    dist.all_reduce(large)
    found["all_reduce of 12 MB"] = large
    tensor = random(11)
    dist.broadcast(tensor, src=size - 1)
    found["broadcast"] = tensor
    gathered = [torch.zeros(4, 2) for _ in range(size)]
    dist.all_gather(gathered, random(4, 2))
    found["all_gather"] = torch.stack(gathered)
    output = torch.zeros(size * 5)
    dist.all_gather_into_tensor(output, random(5))
    found["all_gather_into_tensor"] = output
    output = torch.zeros(3)
    dist.reduce_scatter(output, [random(3) for _ in range(size)])
    found["reduce_scatter"] = output
    output = torch.zeros(6)
    dist.reduce_scatter_tensor(output, random(6 * size))
    found["reduce_scatter_tensor"] = output
    tensor = random(9)
    dist.reduce(tensor, dst=0)
    if rank == 0:
        found["reduce"] = tensor
    dist.barrier()
    # round the ring: receive from the left what the left sends to the right
    received = torch.zeros(400_000)
    mine = random(400_000)
    if rank == 0:
        dist.send(mine, dst=1 % size)
        dist.recv(received, src=size - 1)
    else:
        dist.recv(received, src=rank - 1)
        dist.send(mine, dst=(rank + 1) % size)
    found["send and recv"] = received
    return found


def ddp(model, rank, size, steps=3):
    """Losses and parameters of `DistributedDataParallel` training."""
    module = torch.nn.parallel.DistributedDataParallel(models.build(model, "small", seed=1))
    task = models.variant(model, "small").task
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for step in range(steps):
        share = task.batch(step, 4 * size, seed=1).share(rank, size)
        optimizer.zero_grad()
        loss = models.loss(module(*share.inputs), share.targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return {"losses": torch.tensor(losses), **{n: p.detach().clone() for n, p in module.module.named_parameters()}}


def main(order):
    torch.set_num_threads(1)
    process_group.register()
    rank, size, scratch = order["rank"], order["size"], Path(order["scratch"])
    found = {}
    for backend in ("gloo", "rdma"):
        dist.init_process_group(backend, store=dist.FileStore(str(scratch / backend), size), rank=rank, world_size=size)
        found[backend] = {"collectives": collectives(rank, size)}
        for model in order["models"]:
            found[backend][model] = ddp(model, rank, size)
        dist.barrier()
        if backend == "rdma":
            found["copied"] = dist.distributed_c10d._get_default_group().ledger.sites
        dist.destroy_process_group()
    torch.save(found, scratch / f"found{rank}.pt")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
