"""An emulated timeline in the plan's words."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from emulation.evaluate import Result
    from emulation.io.chrome_trace import Slice
    from engines.superscaler.emulate import Lowered
    from engines.superscaler.plan import Block

Kind = Literal["compute", "collective", "message"]
SHOWN = 16
"""Most devices of a chart."""


class Span(NamedTuple):
    """A stretch of time on a device, with nothing else of its kind and block in between."""

    device: int
    kind: Kind
    block: Block | None
    start: float
    """Seconds."""
    end: float


def spans(lowered: Lowered, result: Result, devices: Collection[int] | None = None) -> list[Span]:
    """What devices do when; neighbouring kernels of one block are one span.

    Args:
        lowered: the program.
        result: its evaluation.
        devices: to look at; by default `representatives`.
    """
    number = {name: device for device, name in lowered.devices.items()}
    wanted = set(representatives(lowered, result) if devices is None else devices)
    open_: dict[tuple[int, Kind], Span] = {}
    found: list[Span] = []
    for one in result.timeline():
        device = number.get(one.process)
        if device not in wanted:
            continue
        told = lowered.told[result.item(one.args["node"])]
        kind: Kind = "message" if told.communicates else "collective" if _together(one) else "compute"
        span = Span(device, kind, told.block, one.start, one.start + one.duration)
        before = open_.get((device, kind))
        # Ends and starts that meet are equal but for the last digits of seconds.
        if before is not None and before.block == span.block and abs(before.end - span.start) < 1e-12:
            open_[device, kind] = before._replace(end=span.end)
            continue
        if before is not None:
            found.append(before)
        open_[device, kind] = span
    return sorted([*found, *open_.values()], key=lambda s: (s.device, s.start, s.kind, s.end))


def representatives(lowered: Lowered, result: Result) -> list[int]:
    """Devices that stand for all: those that do something else than the others, evenly thinned out to a few."""
    folded = [device for device, name in lowered.devices.items() if not result.fold or name in result.fold]
    if len(folded) <= SHOWN:
        return sorted(folded)
    return [sorted(folded)[place * len(folded) // SHOWN] for place in range(SHOWN)]


def slices(lowered: Lowered, result: Result) -> Iterator[Slice]:
    """The timeline for Perfetto: every slice says which block it is of and what is done."""
    for one in result.timeline():
        told = lowered.told[result.item(one.args["node"])]
        args = dict(one.args) | {"part of": told.text}
        name = one.name
        if told.block is not None:
            args |= {"stage": told.block.stage, "micro-batch": told.block.micro_batch, "pass": told.block.what}
            name = f"{told.block.what}{told.block.micro_batch} {name}"
        yield replace(one, name=name, args=args)


def _together(one: Slice) -> bool:
    return one.args["kind"] not in ("compute", "host", "chain")
