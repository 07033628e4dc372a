"""The receiving rank of a benchmark: takes a step whenever it is told to, until it is told to stop."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from engines.rdma import transports
from engines.rdma.session import Session
from engines.rdma.tensors import Payload
from engines.rdma.transports.one_sided import registered_bytes
from harness.api import retain_freed_memory
from harness.execution.rendezvous import FileRendezvous


@dataclass
class Context:
    """What a session needs of a run's context."""

    rank: int
    rendezvous: FileRendezvous


def main(directory, name, payload):
    retain_freed_memory()
    with Session(Context(1, FileRendezvous(Path(directory))), 30.0) as session:
        receiver = transports.open_receiver(name, session, registered_bytes(payload))
        receiver.prepare(payload)
        while step := session.hear("next step"):
            session.tell("ready")
            receiver.receive(step)
        receiver.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Payload.from_json(json.loads(sys.argv[3])))
