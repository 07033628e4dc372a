"""One machine of a divided training step as a program of its own: `python analyzer_machine.py '<JSON>'`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from torch import nn

from engines.rdma.analyzer.capture import joint
from engines.rdma.analyzer.device_port import DevicePort, capacity
from engines.rdma.analyzer.graph_executor import GraphExecutor
from engines.rdma.analyzer.partition import parameter_server
from engines.rdma.analyzer.plan import analyze
from engines.rdma.executor import drive
from engines.rdma.providers import open_device
from harness.api import HarnessError
from harness.execution.rendezvous import FileRendezvous

RATE = 0.05


def model():
    torch.manual_seed(0)
    convolution = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten())
    return nn.Sequential(convolution, nn.Linear(8 * 36, 16), nn.LayerNorm(16), nn.Linear(16, 4))


def batch(step):
    return torch.randn(6, 3, 6, 6, generator=torch.Generator().manual_seed(step))


def loss(output):
    return output.pow(2).mean()


def plan():
    program = joint(torch.export.export(model(), (batch(0),)), loss)
    gradients = {name: "server" for name in program.outputs if name.startswith("grad:")}
    return analyze(program, parameter_server(program), results=gradients)


def main(order):
    torch.set_num_threads(1)
    machine, scratch, found = order["machine"], Path(order["scratch"]), {"copied": []}
    board, divided = FileRendezvous(scratch / "board"), plan()
    device = open_device(order["provider"], capacity(divided, machine))
    port = DevicePort(divided, machine, device)
    for peer in port.peers:
        board.set(f"{machine}/{peer}", port.offer(peer))
    for peer in port.peers:
        port.accept(peer, board.get(f"{peer}/{machine}", timeout=order["timeout"]))
    executor = GraphExecutor(divided, machine, port, device.ledger)
    try:
        for step in range(1, order["steps"] + 1):
            if order["die_at"] == step:
                os.kill(os.getpid(), 9)
            device.ledger.clear()
            inputs = dict.fromkeys(executor.inputs, batch(step))
            results = drive(executor.step(inputs), device, alive=port.alive, timeout=order["timeout"])
            found["copied"].append(device.ledger.nbytes)
            for name in executor.state if machine == "server" else ():
                executor.state[name].sub_(RATE * results[f"grad:{name}"])
            del results
        found["state"] = {name: value.tolist() for name, value in executor.state.items()}
        found["registrations"] = device.counters().registrations
    except HarnessError as error:
        found["error"] = f"{type(error).__name__}: {error}"
    (scratch / f"{machine}.json").write_text(json.dumps(found))
    executor.close()
    port.close()
    device.close()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
