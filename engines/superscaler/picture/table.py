"""Who holds what: a row for every stage."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from emulation.units import render
from engines.superscaler.memory import stage_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from engines.superscaler.memory import DeviceMemory
    from engines.superscaler.plan import Stage
    from engines.superscaler.program import Program


@dataclass(frozen=True)
class Row:
    """A stage."""

    stage: int
    what: str
    """Its modules."""
    devices: tuple[int, ...]
    mesh: tuple[int, ...]
    ops: int
    split: str
    """For every axis of the mesh what it splits, and how many operators do not split along it."""
    groups: str
    """What is recomputed or co-sharded."""
    parameters: int
    """Numbers, of the stage as a whole."""
    memory: Mapping[str, int]
    """Bytes of a device at its peak, by category; with those of other stages on the same device."""

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self) | {"devices": list(self.devices), "mesh": list(self.mesh), "memory": dict(self.memory)}


def rows(program: Program, memory: Sequence[DeviceMemory]) -> list[Row]:
    """A row for every stage.

    Args:
        program: what is done.
        memory: over the step (`memory.over_step`).
    """
    peaks = {device: one.peak for one in memory for device in one.devices}
    found = []
    for number, stage in enumerate(program.plan.stages):
        graph = program.graph
        tensors = {name for op in stage.ops for name in graph.by_name[op].inputs}
        weights = sum(graph.tensors[name].elements for name in tensors if graph.tensors[name].role == "parameter")
        fullest = max(stage.mesh.devices, key=lambda device: (peaks[device].total, -device))
        what = stage_text(program, number).partition("(")[2].rstrip(")")
        found.append(
            Row(
                number, what, stage.mesh.devices, stage.mesh.shape, len(stage.ops), _split(stage), _groups(stage),
                weights, dict(peaks[fullest].by),
            )
        )  # fmt: skip
    return found


def text(found: Sequence[Row]) -> str:
    """The rows as an aligned table."""
    head = ("stage", "what", "devices", "operators", "split", "again", "parameters", "memory of a device")
    lines = [head, *(_cells(row) for row in found)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def _cells(row: Row) -> tuple[str, ...]:
    held = ", ".join(f"{name} {render(nbytes, 'B')}" for name, nbytes in row.memory.items() if nbytes)
    total = render(sum(row.memory.values()), "B")
    shape = " x ".join(map(str, row.mesh))
    return (
        str(row.stage), row.what, f"{ranges(row.devices)} ({shape})", str(row.ops), row.split or "-",
        row.groups or "-", f"{row.parameters:,}", f"{total}: {held}",
    )  # fmt: skip


def ranges(devices: Sequence[int]) -> str:
    """Devices in few words: `0-3, 8`."""
    runs: list[list[int]] = []
    for device in sorted(devices):
        if runs and runs[-1][1] == device - 1:
            runs[-1][1] = device
        else:
            runs.append([device, device])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _split(stage: Stage) -> str:
    found = []
    for axis, size in enumerate(stage.mesh.shape):
        if size == 1:
            continue
        counts = Counter(names[axis] if axis < len(names) else "" for names in stage.splits.values())
        ordered = sorted(counts.items(), key=lambda pair: (pair[0] == "", -pair[1], pair[0]))
        words = [f"{name or 'whole'} {count}" for name, count in ordered]
        found.append(f"x{size}: {', '.join(words)}")
    return "; ".join(found)


def _groups(stage: Stage) -> str:
    again = sum(len(group.ops) for group in stage.groups if group.parts == 1)
    parts = Counter({group.parts: 0 for group in stage.groups if group.parts > 1})
    for group in stage.groups:
        if group.parts > 1:
            parts[group.parts] += len(group.ops)
    words = [f"recomputed {again}"] if again else []
    return ", ".join([*words, *(f"co-shard x{count}: {ops}" for count, ops in sorted(parts.items()))])
