"""`nvidia-smi topo -m`: which accelerators and adapters are near one another.

The matrix says for each two devices over what they are joined: `X` itself, `NV#` that many NVLinks, `PIX` at most one
PCIe bridge, `PXB` several bridges, `PHB` the host bridge of one processor, `NODE` several host bridges of one NUMA
node, `SYS` the interconnect between NUMA nodes (the legend below the matrix). From that follow PCIe switches, NUMA
nodes and NVLinks; it says nothing of rates.

Where NVLinks join two accelerators, their way over PCIe is not told; they are taken to be on one NUMA node if the
column `NUMA Affinity` says so. NVLinks between all of several accelerators, more than a processor could have for each
of the others alone, are taken for an NVSwitch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

from emulation.io import FormatError
from emulation.io.host_fragment import Fragment, Wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

MOST_NVLINKS = 18
"""Of one processor (H100); more to all others together must go through a switch."""
NEAR = ("PIX", "PXB", "PHB", "NODE", "SYS")
"""From near to far."""

_ESCAPE = re.compile(r"\x1b\[[0-9;]*m")
_DEVICE = re.compile(r"(GPU|NIC)\d+$|mlx\d+_\w+$|\w+_(?:bond_)?\d+$")
_GPU = re.compile(r"GPU\d+$")
_ENTRY = re.compile(r"NV\d+$")


@dataclass(frozen=True)
class Matrix:
    """The matrix as it stands there; `entries[i][j]` is the way from the i-th device to the j-th."""

    devices: tuple[str, ...]
    entries: tuple[tuple[str, ...], ...]
    numa: tuple[str, ...]
    """`NUMA Affinity` of each device; empty where it is not told."""
    legend: dict[str, str]
    """`NIC0` -> `mlx5_0`."""


def recognises(text: str) -> bool:
    """Whether a text looks like such a matrix."""
    return any(_is_header(_ESCAPE.sub("", line).split()) for line in text.splitlines())


def read_matrix(path: Path) -> Matrix:
    """Read the matrix.

    Raises:
        FormatError: no matrix, a row that is missing or too short, an unknown entry, two entries of one pair that
            differ. Names file and line.
    """
    columns: list[str] = []
    rows: dict[str, tuple[int, list[str]]] = {}
    affinity: dict[str, str] = {}
    legend: dict[str, str] = {}
    for number, raw in enumerate(path.read_text("utf-8", errors="replace").splitlines(), start=1):
        words = _ESCAPE.sub("", raw).split()
        if not columns and _is_header(words):
            columns = [word for word in words if _DEVICE.match(word)]
        elif columns and words and words[0] in columns and words[0] not in rows:
            name, entries = words[0], words[1 : 1 + len(columns)]
            _check_row(path, number, name, entries, columns)
            rows[name] = number, entries
            affinity[name] = _numa(words[1 + len(columns) :])
        elif pair := re.match(r"\s*(NIC\d+):\s*(\S+)", raw):
            legend[pair[1]] = pair[2]
    if not columns:
        raise FormatError(f"{path}: no line of column names such as 'GPU0 GPU1 ... CPU Affinity'")
    for name in columns:
        if name not in rows:
            raise FormatError(f"{path}: the matrix has a column {name} and no row")
    _check_symmetric(path, columns, rows)
    return Matrix(
        tuple(columns),
        tuple(tuple(rows[name][1]) for name in columns),
        tuple(affinity[name] for name in columns),
        legend,
    )


def read(path: Path) -> Fragment:
    """Read the matrix as the host it describes.

    Raises:
        FormatError: see `read_matrix`.
    """
    matrix = read_matrix(path)
    gpus = [n for n, name in enumerate(matrix.devices) if _GPU.match(name)]
    nics = [n for n in range(len(matrix.devices)) if n not in set(gpus)]
    if not gpus:
        raise FormatError(f"{path}: no GPU in the matrix")
    fragment = Fragment(f"{path.name} (nvidia-smi topo -m)", len(gpus))
    if nics:
        fragment.nics["nic"] = [None] * len(nics)
    names = {n: f"gpu{i}" for i, n in enumerate(gpus)} | {n: f"nic{i}" for i, n in enumerate(nics)}
    _add_pcie(fragment, matrix, names)
    _add_nvlinks(fragment, matrix, gpus, names)
    fragment.notes.append("the matrix has no rates: those of the profile's own links of the same kind are taken")
    return fragment


def _is_header(words: Sequence[str]) -> bool:
    return len(words) > 1 and words[0] == "GPU0" and (words[1] in {"GPU1", "CPU"} or bool(_DEVICE.match(words[1])))


def _check_row(path: Path, number: int, name: str, entries: Sequence[str], columns: Sequence[str]) -> None:
    if len(entries) < len(columns):
        raise FormatError(f"{path}:{number}: row {name} has {len(entries)} entries for {len(columns)} columns")
    for column, entry in zip(columns, entries, strict=True):
        if (entry == "X") != (column == name):
            raise FormatError(
                f"{path}:{number}: {entry!r} in row {name}, column {column}: X is for a device with itself"
            )
        if entry != "X" and entry not in NEAR and not _ENTRY.match(entry):
            known = ", ".join(("X", "NV#", *NEAR))
            raise FormatError(f"{path}:{number}: {entry!r} in row {name}, column {column}; there is {known}")


def _check_symmetric(path: Path, columns: Sequence[str], rows: dict[str, tuple[int, list[str]]]) -> None:
    for (i, left), (j, right) in combinations(enumerate(columns), 2):
        there, back = rows[left][1][j], rows[right][1][i]
        if there != back:
            raise FormatError(f"{path}:{rows[right][0]}: {right} to {left} is {back}, and {left} to {right} is {there}")


def _numa(rest: Sequence[str]) -> str:
    """The NUMA node in what follows the entries: `0-55,112-167  0  N/A`; empty where it is not one node."""
    return rest[1] if len(rest) > 1 and rest[1].isdecimal() else ""


def _add_pcie(fragment: Fragment, matrix: Matrix, names: dict[int, str]) -> None:
    """Switches for what is near, NUMA nodes for what is less near, and the tree that joins them."""
    entry = matrix.entries

    def one_node(i: int, j: int) -> bool:
        if _ENTRY.match(entry[i][j]):
            return bool(matrix.numa[i]) and matrix.numa[i] == matrix.numa[j]
        return entry[i][j] in {"PIX", "PXB", "PHB", "NODE"}

    everything = sorted(names)
    nodes = _joined(everything, one_node)
    roots = ["cpu"]
    if len(nodes) > 1:
        fragment.switches["numa"] = len(nodes)
        roots = [f"numa{n}" for n in range(len(nodes))]
        fragment.wires += [Wire("cpu", root, "cpu") for root in roots]
    switches = 0

    def switch(below: str) -> str:
        nonlocal switches
        name = f"pcie-switch{switches}"
        switches += 1
        fragment.wires.append(Wire("pcie", name, below))
        return name

    for root, node in zip(roots, nodes, strict=True):
        for outer in _joined(node, lambda i, j: entry[i][j] in {"PIX", "PXB"}):
            inner = _joined(outer, lambda i, j: entry[i][j] == "PIX")
            # A chain of bridges above a single one would be one link more and nothing else.
            above = switch(root) if len(inner) > 1 else root
            for near in inner:
                port = switch(above) if len(near) > 1 else above
                fragment.wires += [Wire("pcie", names[device], port) for device in near]
    if switches:
        fragment.switches["pcie-switch"] = switches


def _add_nvlinks(fragment: Fragment, matrix: Matrix, gpus: Sequence[int], names: dict[int, str]) -> None:
    counts = {
        (i, j): int(matrix.entries[i][j][2:]) for i, j in combinations(gpus, 2) if _ENTRY.match(matrix.entries[i][j])
    }
    if not counts:
        return
    every = len(counts) == len(gpus) * (len(gpus) - 1) // 2
    lanes = set(counts.values())
    if every and len(lanes) == 1 and max(lanes) * (len(gpus) - 1) > MOST_NVLINKS:
        fragment.switches["nvswitch"] = 1
        fragment.wires += [Wire("nvlink", names[gpu], "nvswitch0", max(lanes)) for gpu in gpus]
        return
    fragment.wires += [Wire("nvlink", names[i], names[j], count) for (i, j), count in counts.items()]


def _joined(items: Iterable[int], near: Callable[[int, int], bool]) -> list[list[int]]:
    """Items in groups: those that are near one another, directly or over others."""
    import networkx

    graph = networkx.Graph()
    ordered = list(items)
    graph.add_nodes_from(ordered)
    graph.add_edges_from((i, j) for i, j in combinations(ordered, 2) if near(i, j))
    return sorted(sorted(group) for group in networkx.connected_components(graph))
