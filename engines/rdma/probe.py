"""From two measured sizes to the software costs of a hardware profile.

Run `harness run specs/rdma/calibration.yaml` (between guests: `specs/rdma/calibration-softroce.yaml`), then `python -m
engines.rdma.probe RECORD`: it prints the figures of `hosts[].software` (see `emulation.profile`) that the cost models
of `lowering` use. Each model is solved exactly, no more than two points each:

==========================  ==================================================================================
figure                      from
==========================  ==================================================================================
`one_sided.post`            a quarter of the small zero-copy step less its bytes (post and poll, there and back)
`one_sided.completion`      the same
`link.rate`                 between hosts: bytes over time, from the small zero-copy step to the large one
`memcpy`                    between hosts: one thread's copy of the large payload
`tcp.per_message`           half of the small tcp step (one wake-up there, one back)
`tcp.stream`                bytes over the large tcp step less its fixed cost
`rpc.per_call`              the small unary step, packing included
`rpc.stream_message`        the small step on an open stream
`rpc.serialise`             bytes over half of what the large step of RPC over RDMA takes beside its copies and the wire
`rpc.stream`                bytes over what is left of the large unary step
==========================  ==================================================================================

Between hosts, what the wire's latency costs is within the fixed costs, so the profile's link has none of its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emulation.units import BYTES, parse
from engines.rdma.transports.rpc_over_rdma import FRAGMENT, RECEIVER_COPIES, SENDER_COPIES
from harness.api import HarnessError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

RATES = ("link.rate", "memcpy", "tcp.stream", "rpc.serialise", "rpc.stream")
NEEDED = ("zero-copy", "rpc-over-rdma", "tcp", "grpc", "grpc-stream")


class Unsolvable(HarnessError):
    """The record lacks a point, or its times do not fit the models."""


@dataclass(frozen=True)
class Points:
    """What a record says: two sizes, and medians by transport."""

    small: int
    large: int
    """Bytes."""
    steps: Mapping[tuple[str, int], float]
    """(transport, bytes) to seconds of a step."""
    copied: Mapping[int, float]
    """Bytes to the rate of one thread's copy, bytes per second."""


def figures(points: Points, *, between_hosts: bool) -> dict[str, float]:
    """The profile's figures in base units.

    Args:
        points: the two sizes.
        between_hosts: whether the ranks ran on different hosts.

    Raises:
        Unsolvable: a rate or a time would be negative.
    """
    small, large, steps = points.small, points.large, points.steps
    copy = large / points.copied[large]
    if between_hosts:
        wire = (steps["zero-copy", large] - steps["zero-copy", small]) / (large - small)
        fixed = steps["zero-copy", small] - small * wire
        found = {"link.rate": 1 / wire, "memcpy": points.copied[large]}
    else:
        wire, found = 1 / points.copied[large], {}
        fixed = steps["zero-copy", small] - small / points.copied[small]
    found |= {"one_sided.post": fixed / 4, "one_sided.completion": fixed / 4}
    copies = (RECEIVER_COPIES + (SENDER_COPIES if between_hosts else 0)) * copy
    ring = large * max(wire, found["one_sided.post"] / FRAGMENT)
    packing = (steps["rpc-over-rdma", large] - fixed - copies - ring) / 2
    wake, call = steps["tcp", small] / 2, steps["grpc", small]
    found |= {
        "tcp.per_message": wake,
        "tcp.stream": large / (steps["tcp", large] - 2 * wake),
        "rpc.per_call": call,
        "rpc.stream_message": steps["grpc-stream", small],
        "rpc.serialise": large / packing,
        "rpc.stream": large / (steps["grpc", large] - call - 2 * packing),
    }
    wrong = [name for name, value in found.items() if value <= 0]
    if wrong:
        raise Unsolvable(f"the record does not fit the cost models: {', '.join(wrong)} would be negative")
    return found


def read(record: Mapping[str, Any]) -> Points:
    """The points of a record: its smallest and its largest payload.

    Raises:
        Unsolvable: a transport was not measured, or only one size.
    """
    steps: dict[tuple[str, int], float] = {}
    copied: dict[int, float] = {}
    for value in record["values"]:
        if value["name"] not in ("step_time", "memcpy_bandwidth"):
            continue
        middle, nbytes = statistics.median(value["samples"]), int(parse(value["labels"]["payload"], BYTES))
        if value["name"] == "step_time":
            steps[value["labels"]["transport"], nbytes] = middle
        else:
            copied[nbytes] = middle
    small, large = min(copied, default=0), max(copied, default=0)
    lacking = [name for name in NEEDED if not {(name, small), (name, large)} <= set(steps)]
    if small == large or lacking:
        raise Unsolvable(f"a probe needs two sizes and the transports {', '.join(NEEDED)}")
    return Points(small, large, steps, copied)


def main(arguments: Sequence[str]) -> str:
    """The figures as lines of `name: value unit`."""
    parser = argparse.ArgumentParser(prog="python -m engines.rdma.probe", description="figures of a hardware profile")
    parser.add_argument("record", type=Path, help="record.json of a run of a calibration spec")
    parser.add_argument("--between-hosts", action="store_true", help="the ranks ran on different hosts")
    chosen = parser.parse_args(arguments)
    points = read(json.loads(chosen.record.read_text(encoding="utf-8")))
    return "\n".join(
        f"{name}: {value / 1e9:.3g} GB/s" if name in RATES else f"{name}: {value * 1e6:.3g} us"
        for name, value in figures(points, between_hosts=chosen.between_hosts).items()
    )


if __name__ == "__main__":
    sys.stdout.write(main(sys.argv[1:]) + "\n")
