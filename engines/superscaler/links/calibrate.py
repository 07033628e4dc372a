"""A profile of a network of namespaces, from single collectives and messages timed on it.

Nothing in it comes from a plan: what a plan's step takes is predicted from these figures alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from emulation.profile import Profile
from engines.superscaler.links.jobs import Single, measure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engines.superscaler.links.network import Shape

KINDS = ("all-reduce", "reduce-scatter", "all-gather", "all-to-all")
SIZES = (3 << 10, 24 << 10, 96 << 10, 384 << 10, 1536 << 10)
"""Bytes of one rank's buffer; divisible by 2, 3 and 4 ranks' shares."""
FLOPS = 2e10
"""Per second, that a run is taken to compute with (and sleeps for): little beside what such a network takes."""


def singles(ranks: int) -> tuple[Single, ...]:
    """What is timed to know a network of so many ranks."""
    groups = [tuple(range(size)) for size in range(2, ranks + 1)]
    return tuple(
        [Single("send", (0, 1), size) for size in SIZES]
        + [Single(kind, group, size) for kind in KINDS for group in groups for size in SIZES]
    )


def calibrate(ranks: int, shape: Shape) -> Profile:
    """Time single collectives and messages on such a network, and make a profile of what they took.

    Raises:
        HarnessError: no network can be made here, or a rank failed.
    """
    asked = singles(ranks)
    return profile(ranks, shape, asked, measure(ranks, shape, asked))


def profile(ranks: int, shape: Shape, asked: Sequence[Single], seconds: Sequence[float]) -> Profile:
    """A profile of hosts with one processor each, on links of the given shape to one switch.

    Messages: a latency and a share of the links' rate, from the largest two sizes and the median of what is left over
    at all sizes. Collectives: a table for every kind and number of ranks; where a smaller buffer took longer than a
    larger one (another process was in the way), the larger one's time is taken.
    """
    found: dict[tuple[str, int], list[tuple[int, float]]] = {}
    for job, taken in zip(asked, seconds, strict=True):
        found.setdefault((job.kind, len(job.ranks)), []).append((job.nbytes, taken))
    sent = sorted(found.pop(("send", 2)))
    rate = (sent[-1][0] - sent[-2][0]) / (sent[-1][1] - sent[-2][1])
    left = sorted(taken - nbytes / rate for nbytes, taken in sent)
    latency = max(left[len(left) // 2], 1e-6)
    tables = [
        {
            "op": kind,
            "ranks": members,
            "hosts": members,
            "link": "network",
            "points": [{"bytes": f"{size} B", "time": f"{time * 1e6:.3f} us"} for size, time in _rising(points)],
            **_graded("measured", "links"),
        }
        for (kind, members), points in sorted(found.items())
    ]
    return Profile.model_validate(_fields(ranks, shape, rate, latency, tables))


def _rising(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    rising: list[tuple[int, float]] = []
    for size, taken in sorted(points, reverse=True):
        rising.append((size, min(taken, rising[-1][1]) if rising else taken))
    return rising[::-1]


def _graded(grade: str, source: str) -> dict[str, str]:
    return {"grade": grade, "source": source}


def _fields(ranks: int, shape: Shape, rate: float, latency: float, tables: list[dict[str, Any]]) -> dict[str, Any]:
    def nominal(value: str) -> dict[str, str]:
        return {"value": value, **_graded("prior", "nominal")}

    return {
        "schema": 1,
        "name": f"links-{shape.rate // 10**6}mbit",
        "description": "Network namespaces of one machine, joined by links of limited rate",
        "sources": {
            "links": "single gloo collectives and messages, timed between processes in namespaces; first quartiles",
            "limit": "rate set with a token bucket at both ends of every link",
            "nominal": "of no matter: runs are replaced by sleeps of the length that this profile says",
        },
        "models": {
            "cpu": {
                "kind": "cpu",
                "memory": nominal("64 GiB"),
                "memory_bandwidth": {"peak": nominal("1000000 GB/s")},
                "compute": {dtype: {"peak": nominal(f"{FLOPS:.0f} FLOP/s")} for dtype in ("fp32", "fp64")},
                "launch": nominal("0 s"),
            }
        },
        "hosts": [
            {
                "name": "host",
                "count": ranks,
                "cpu": "cpu",
                "cores": 1,
                "nics": [{"name": "nic"}],
                "links": [
                    {
                        "name": "bus",
                        "kind": "pcie",
                        "ends": ["nic", "cpu"],
                        "rate": nominal("1000 GB/s"),
                        "latency": nominal("0 s"),
                    }
                ],
                "software": {
                    "memcpy": {"peak": nominal("1000 GB/s")},
                    "page": nominal("4 KiB"),
                    "tcp": {
                        "stream": nominal("1000 GB/s"),
                        "per_message": nominal("0 s"),
                        "efficiency": nominal("1.0"),
                    },
                    "rpc": {
                        "per_call": nominal("0 s"),
                        "serialise": nominal("1000 GB/s"),
                        "stream": nominal("1000 GB/s"),
                        "per_message": nominal("0 s"),
                        "message": nominal("16 MiB"),
                    },
                },
            }
        ],
        "fabric": {
            "switches": [{"name": "switch"}],
            "links": [
                {
                    "name": "link",
                    "kind": "network",
                    "ends": ["nic", "switch"],
                    "rate": {"value": f"{shape.rate} bit/s", **_graded("measured", "limit")},
                    "efficiency": {"value": min(1.0, 8 * rate / shape.rate), **_graded("measured", "links")},
                    "latency": {"value": f"{latency / 2 * 1e6:.3f} us", **_graded("measured", "links")},
                }
            ],
        },
        "collective_tables": tables,
        "fragmentation": nominal("6 %"),
    }
