"""A peer in a process of its own, to be killed: `python -m engines.rdma.conformance.victim '<JSON>'`.

It opens a device, prints its address and a region, connects when it is told the other address, and then does nothing:
one-sided writes need no help from the process they go to.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

from engines.rdma.conformance.expectations import Failure
from engines.rdma.conformance.pair import EVERYTHING
from engines.rdma.device import ChannelOptions, Descriptor
from engines.rdma.providers import open_device

if TYPE_CHECKING:
    from engines.rdma.conformance.pair import Setting


class Victim:
    """The handle on it."""

    def __init__(self, setting: Setting, *, nbytes: int, **options: Any) -> None:
        order = {
            "provider": setting.provider, "open": dict(setting.far), "nbytes": nbytes, "options": options,
        }  # fmt: skip
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, json.dumps(order)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        self.address, target = self._hear(), self._hear()
        self.target = Descriptor.from_json(target)

    def __enter__(self) -> Victim:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _hear(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise Failure(f"the peer's process ended with code {self._process.wait()}")
        return line.strip()

    def connect(self, address: str) -> None:
        """Let it join with the channel of this address."""
        assert self._process.stdin is not None
        self._process.stdin.write(address + "\n")
        self._process.stdin.flush()
        if self._hear() != "connected":
            raise Failure("the peer's process did not connect")

    def kill(self) -> None:
        """End it as the kernel ends a process that runs out of memory: at once."""
        self._process.kill()
        self._process.wait()


def _tell(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(order: dict[str, Any]) -> None:
    """Be there until killed, or until whoever started this is gone."""
    device = open_device(order["provider"], order["nbytes"] + 2**16, **order["open"])
    channel = device.channel(ChannelOptions(**order["options"]))
    _tell(channel.address())
    _tell(device.describe(device.allocate(order["nbytes"], access=EVERYTHING)).to_json())
    channel.connect(sys.stdin.readline())
    _tell("connected")
    while sys.stdin.readline():
        time.sleep(0)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
