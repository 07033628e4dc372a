"""From two measured sizes to the software costs of a hardware profile.

Run `harness run specs/rdma/calibration.yaml --on local`, then `python -m engines.rdma.probe <record.json>`: it times
packing and unpacking of a message in this process and prints the figures of `hosts[].software` (see
`emulation.profile`) that the cost models of `lowering` use. Each model is solved exactly, no more than two points each:

==========================  ==================================================================================
figure                      from
==========================  ==================================================================================
`one_sided.post`            a quarter of the small zero-copy step less its copy (post and poll, there and back)
`one_sided.completion`      the same
`tcp.per_message`           half of the small tcp step (one wake-up there, one back)
`tcp.stream`                bytes over the large tcp step less its fixed cost
`rpc.per_call`              the small unary step, packing included
`rpc.stream_message`        the small step on an open stream
`rpc.serialise`             bytes over the mean of packing and unpacking the large message
`rpc.stream`                bytes over what is left of the large unary step
==========================  ==================================================================================
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

SMALL, LARGE = ("3 KiB", 3 * 2**10), ("24 MiB", 24 * 2**20)
PACKINGS = 15


def figures(steps: Mapping[tuple[str, str], float], *, packing: float, copied: float) -> dict[str, float]:
    """The profile's figures in base units.

    Args:
        steps: median step time in seconds by (transport, payload).
        packing: seconds to pack, or to unpack, the large message (their mean).
        copied: bytes per second of one thread's copy of the small payload.
    """
    post = (steps["zero-copy", SMALL[0]] - SMALL[1] / copied) / 4
    wake = steps["tcp", SMALL[0]] / 2
    call = steps["grpc", SMALL[0]]
    return {
        "one_sided.post": post,
        "one_sided.completion": post,
        "tcp.per_message": wake,
        "tcp.stream": LARGE[1] / (steps["tcp", LARGE[0]] - 2 * wake),
        "rpc.per_call": call,
        "rpc.stream_message": steps["grpc-stream", SMALL[0]],
        "rpc.serialise": LARGE[1] / packing,
        "rpc.stream": LARGE[1] / (steps["grpc", LARGE[0]] - call - 2 * packing),
    }


def time_packing() -> float:
    """Median seconds of packing and of unpacking the large message, averaged."""
    import numpy as np

    from engines.rdma.copies import CopyLedger
    from engines.rdma.tensors import Tensor
    from engines.rdma.transports.messages import pack, unpack
    from harness.api import retain_freed_memory

    retain_freed_memory()
    tensor = Tensor("tensor", (LARGE[1],), "uint8")
    source, ledger = np.ones(LARGE[1], np.uint8), CopyLedger()
    wire = pack(tensor, source, step=1, index=0, ledger=ledger)
    there = _median(lambda: pack(tensor, source, step=1, index=0, ledger=ledger))
    back = _median(lambda: unpack(wire, ledger=ledger))
    return (there + back) / 2


def _median(action: Callable[[], Any]) -> float:
    times = []
    for _ in range(PACKINGS):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def read(record: Mapping[str, Any]) -> tuple[dict[tuple[str, str], float], float]:
    """(median step times, copy bandwidth of the small payload) of a record."""
    steps: dict[tuple[str, str], float] = {}
    copied = 0.0
    for value in record["values"]:
        labels, middle = value["labels"], statistics.median(value["samples"])
        if value["name"] == "step_time":
            steps[labels["transport"], labels["payload"]] = middle
        elif value["name"] == "memcpy_bandwidth" and labels["payload"] == SMALL[0]:
            copied = middle
    return steps, copied


def main(path: str) -> str:
    """The figures as lines of `name: value unit`."""
    steps, copied = read(json.loads(Path(path).read_text(encoding="utf-8")))
    found = figures(steps, packing=time_packing(), copied=copied)
    rates = {"tcp.stream", "rpc.serialise", "rpc.stream"}
    return "\n".join(
        f"{name}: {value / 1e9:.3g} GB/s" if name in rates else f"{name}: {value * 1e6:.3g} us"
        for name, value in found.items()
    )


if __name__ == "__main__":
    sys.stdout.write(main(sys.argv[1]) + "\n")
