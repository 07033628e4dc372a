"""Two devices of this process, as two ranks have them."""

from __future__ import annotations

import pytest

from engines.rdma.executor import Executor, interleave
from engines.rdma.production import Producer
from engines.rdma.providers import open_device
from engines.rdma.tensors import fill
from engines.rdma.transports import Setting, capacity, receiving_end, sending_end


class Ranks:
    """Both ends of a transport, and the turns they take."""

    def __init__(self, name, payloads, **how):
        self.setting = Setting(tuple(payloads), **how)
        self.devices = [open_device("shm", capacity([name], self.setting, rank=rank)) for rank in (0, 1)]
        self.producer = Producer(self.devices[0], self.setting)
        self.sender = sending_end(name, self.devices[0], self.setting)
        self.receiver = receiving_end(name, self.devices[1], self.setting)
        self.sender.channel.connect(self.receiver.channel.address())
        self.receiver.channel.connect(self.sender.channel.address())

    def prepare(self, payload):
        self.payload, self.sources = payload, self.producer.sources(payload)
        self.produce(seed=0)
        to_receiver, to_sender = self.sender.offer(payload, self.sources), self.receiver.offer(payload)
        self.sender.accept(to_sender)
        self.receiver.accept(to_receiver)

    def produce(self, seed):
        for index, source in enumerate(self.sources):
            fill(source, seed=seed, payload=self.payload.name, index=index)

    def step(self, step):
        executors = [Executor(device, timeout=5.0) for device in self.devices]
        executors[0].submit(self.sender.step_operation(step))
        executors[1].submit(self.receiver.step_operation(step))
        interleave(executors)

    def close(self):
        for part in (self.sender, self.receiver, *self.devices):
            part.close()


@pytest.fixture
def ranks():
    """Makes `Ranks`, and closes them."""
    made = []

    def make(name, payloads, **how):
        made.append(Ranks(name, payloads, **how))
        made[-1].prepare(payloads[0])
        return made[-1]

    yield make
    for one in made:
        one.close()
