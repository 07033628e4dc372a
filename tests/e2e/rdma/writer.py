"""Writes steps into another process's slot as fast as they are acknowledged: `python writer.py '<JSON>'`."""

from __future__ import annotations

import json
import sys

from engines.rdma.device import WORD, Access, Descriptor
from engines.rdma.providers import open_device


def main(order):
    nbytes = order["nbytes"]
    device = open_device("shm", nbytes + 4096)
    source = device.allocate(nbytes + WORD, access=Access.LOCAL_WRITE)
    ack = device.allocate(WORD, access=Access.REMOTE_WRITE)
    channel = device.channel()
    sys.stdout.write(channel.address() + "\n" + device.describe(ack).to_json() + "\n")
    sys.stdout.flush()
    channel.connect(order["address"])
    target = Descriptor.from_json(order["target"])
    sequence, acknowledged = source.view[nbytes:].cast("Q"), ack.view.cast("Q")
    for step in range(order["first"], order["last"] + 1):
        source.view[:nbytes] = bytes([step % 256]) * nbytes
        sequence[0] = step
        channel.send(step.to_bytes(8, "little"))
        channel.write(source, target, offset=0, at=0, nbytes=nbytes + WORD, signaled=False)
        while acknowledged[0] != step:
            device.idle()
            channel.poll()
            assert channel.alive()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
