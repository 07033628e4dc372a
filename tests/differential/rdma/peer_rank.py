"""One rank that moves given tensors by one transport: `python peer_rank.py '<JSON>'`.

Rank 0 reads each tensor's bytes from a file, rank 1 writes to a file what it received.
"""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engines.rdma import transports
from engines.rdma.production import Producer, private_sources
from engines.rdma.session import Session
from engines.rdma.tensors import Payload
from engines.rdma.transports.base import Setting
from harness.execution.rendezvous import FileRendezvous

WAIT = 60.0
STEPS = 3


@dataclass
class Context:
    """What a session needs of a run's context."""

    rank: int
    rendezvous: FileRendezvous
    address: str = "127.0.0.1"


def main(rank, name, scratch, payload):
    with ExitStack() as stack:
        board = FileRendezvous(scratch / f"board {name}", rank=rank, world_size=2)
        session = stack.enter_context(Session(Context(rank, board), WAIT))
        setting = Setting((payload,))
        nbytes = transports.capacity([name], setting, rank=rank)
        device = session.open_device("auto", nbytes) if nbytes else None
        if rank == 0:
            sender = transports.open_sender(name, session, setting, device)
            stack.callback(sender.close)
            sources = Producer(device, setting).sources(payload) if device else private_sources(payload)
            for tensor, source in zip(payload.tensors, sources, strict=True):
                source[:] = np.fromfile(scratch / tensor.name, np.uint8)
            sender.prepare(payload, sources)
            for step in range(1, 1 + STEPS):
                session.hear("ready")
                sender.send(step)
            session.swap("sent", "received")
        else:
            receiver = transports.open_receiver(name, session, setting, device)
            stack.callback(receiver.close)
            receiver.prepare(payload)
            for step in range(1, 1 + STEPS):
                receiver.poison()
                session.tell("ready")
                receiver.receive(step)
            for index, tensor in enumerate(payload.tensors):
                receiver.received(index).tofile(scratch / f"{tensor.name} by {name}")
            session.swap("received", "sent")


if __name__ == "__main__":
    order = json.loads(sys.argv[1])
    main(order["rank"], order["transport"], Path(order["scratch"]), Payload.from_json(order["payload"]))
