"""A divided graph over registered devices, shared-memory and simulated ones, all machines in this process."""

from __future__ import annotations

import json

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402 - after the check that torch is there

from engines.rdma.analyzer import allocator_hook  # noqa: E402
from engines.rdma.analyzer.capture import forward, joint  # noqa: E402
from engines.rdma.analyzer.device_port import DevicePort, capacity  # noqa: E402
from engines.rdma.analyzer.graph_executor import GraphExecutor  # noqa: E402
from engines.rdma.analyzer.partition import parameter_server, pipeline  # noqa: E402
from engines.rdma.analyzer.plan import analyze  # noqa: E402
from engines.rdma.device import InvalidDescriptor, OutOfMemory  # noqa: E402
from engines.rdma.executor import Executor, interleave  # noqa: E402
from engines.rdma.placement import ProtocolError  # noqa: E402
from engines.rdma.providers import open_device  # noqa: E402

needs_hook = pytest.mark.skipif(allocator_hook.compiler() is None, reason="no C++ compiler")
ROOM = 1 << 16


class Cluster:
    """All machines of a plan, each with its device."""

    def __init__(self, plan, provider, **options):
        options = {"dynamic_bytes": ROOM, **options}
        self.devices = {name: open_device(provider, capacity(plan, name, ROOM)) for name in plan.machines}
        self.ports = {name: DevicePort(plan, name, device, **options) for name, device in self.devices.items()}
        offers = {(name, peer): port.offer(peer) for name, port in self.ports.items() for peer in port.peers}
        for (name, peer), text in offers.items():
            self.ports[peer].accept(name, text)
        self.executors = {
            name: GraphExecutor(plan, name, port, self.devices[name].ledger) for name, port in self.ports.items()
        }

    def step(self, **inputs):
        for device in self.devices.values():
            device.ledger.clear()
        queues = {name: Executor(device, timeout=30.0) for name, device in self.devices.items()}
        tasks = [
            queues[name].submit(each.step({key: inputs[key] for key in each.inputs}), alive=self.ports[name].alive)
            for name, each in self.executors.items()
        ]
        interleave(list(queues.values()))
        return {name: value for task in tasks for name, value in task.result.items()}

    @property
    def copied(self):
        return sum(device.ledger.nbytes for device in self.devices.values())

    def close(self):
        for executor in self.executors.values():
            executor.close()
        for port in self.ports.values():
            port.close()
        for device in self.devices.values():
            device.close()


@pytest.fixture(params=["shm", "sim"])
def cluster(request):
    if request.param == "sim":
        pytest.importorskip("simpy")
    made = []

    def make(plan, **options):
        made.append(Cluster(plan, request.param, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


class TwoLayers(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, data):
        return self.second(torch.relu(self.first(data)))


def squares(output):
    return output.pow(2).sum()


def whole(program, inputs):
    values = [program.state[each.name] if each.name in program.state else inputs[each.name] for each in program.inputs]
    with torch.set_grad_enabled(program.grad_mode):
        return dict(zip(program.outputs, program.module(*values), strict=True))


@needs_hook
@pytest.mark.parametrize("signal", ["tail", "imm", "debug"])
def test_a_parameter_server_moves_everything_without_a_copy(cluster, signal):
    program = joint(torch.export.export(TwoLayers(), (torch.randn(6, 8),)), squares, replicas=2)
    machines = cluster(analyze(program, parameter_server(program)), signal=signal)
    registered = [device.counters().registrations for device in machines.devices.values()]
    for step in range(4):
        inputs = {"data@0": torch.randn(6, 8), "data@1": torch.randn(6, 8)}
        found, expected = machines.step(**inputs), whole(program, inputs)
        assert all(torch.equal(found[name], value) for name, value in expected.items())
        assert (machines.copied == 0) == (step > 0)
        del found
    assert [device.counters().registrations for device in machines.devices.values()] == registered


def test_dynamic_edges_are_announced_and_read(cluster):
    batch = ({0: torch.export.Dim("batch", min=2)},)
    program = joint(torch.export.export(TwoLayers(), (torch.randn(6, 8),), dynamic_shapes=batch), squares)
    machines = cluster(analyze(program, pipeline(program, {"first": "a", "second": "b"})))
    for size in (6, 3, 9, 3):
        data = torch.randn(size, 8)
        found, expected = machines.step(data=data), whole(program, {"data": data})
        assert all(torch.equal(found[name], value) for name, value in expected.items())
        assert machines.copied == 2 * size * 16 * 4
        del found
    assert machines.devices["b"].counters().reads == 4


def test_a_dynamic_value_that_does_not_fit_is_a_typed_error(cluster):
    batch = ({0: torch.export.Dim("batch", min=2)},)
    program = forward(torch.export.export(TwoLayers(), (torch.randn(6, 8),), dynamic_shapes=batch))
    machines = cluster(analyze(program, pipeline(program, {"first": "a", "second": "b"})))
    with pytest.raises(OutOfMemory, match="too small"):
        machines.step(data=torch.randn(ROOM // 64 + 1, 8))


def test_an_offer_of_another_plan_is_refused():
    def ports(width):
        program = forward(torch.export.export(nn.Tanh(), (torch.randn(width),)))
        plan = analyze(program, lambda _: "a", results={"output:0": "b"})
        device = open_device("shm", 1 << 16)
        return device, DevicePort(plan, "a" if width == 5 else "b", device)

    (one, sender), (other, receiver) = ports(5), ports(6)
    with pytest.raises(ProtocolError, match="different tensors"):
        sender.accept("b", receiver.offer("a"))
    for text in ("[", "[]", json.dumps({"channel": 3})):
        with pytest.raises(InvalidDescriptor):
            sender.accept("b", text)
    for port in (sender, receiver):
        port.close()
    one.close()
    other.close()
