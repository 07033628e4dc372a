"""The files of a Chakra trace: which there are, what each says of itself, and its nodes, ids and edges checked."""

from __future__ import annotations

import graphlib
import heapq
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from emulation.io import FormatError
from emulation.io.chakra.messages import OWN, attributes, read_messages, schema
from emulation.units import PICOSECONDS_PER_SECOND

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

TOGETHER = frozenset({"collective", "transfer", "copy"})
"""Kinds of which one node stands in the files of several ranks."""


@dataclass(frozen=True)
class Part:
    """A node of one file."""

    path: Path
    rank: int
    message: Any
    attributes: Mapping[str, Any]

    @property
    def id(self) -> int:
        """The id in its file."""
        return int(self.message.id)

    @property
    def kind(self) -> str:
        """The kind of workload node it was written from; empty for another tool's."""
        return str(self.attributes.get(f"{OWN}kind") or "")

    def __str__(self) -> str:
        return f"{self.path}: node {self.id}"

    def need(self, name: str) -> Any:
        """An attribute that has to be there."""
        if name not in self.attributes:
            raise ValueError(f"a {self.type} needs the attribute {name}")
        return self.attributes[name]

    @property
    def type(self) -> str:
        """The name of its type; a number where it has none."""
        return _type_names().get(self.message.type, str(self.message.type))

    @property
    def seconds(self) -> float:
        """The duration; our own attribute where it is there, since the format's rounds to microseconds."""
        exact = self.attributes.get(f"{OWN}duration_ps")
        return float(self.message.duration_micros / 1e6 if exact is None else exact / PICOSECONDS_PER_SECOND)


@cache
def _type_names() -> dict[int, str]:
    return {number: name for name, number in schema().NodeType.items()}


def files(prefix: Path) -> list[Path]:
    """The trace files of a prefix in rank order.

    Raises:
        FormatError: there are none, or a rank is missing.
    """
    found = {}
    for path in prefix.parent.glob("*.et"):
        head, _, rank = path.name.removesuffix(".et").rpartition(".")
        if head == prefix.name and rank.isdecimal():
            found[int(rank)] = path
    if not found:
        raise FormatError(f"{prefix}: no files {prefix.name}.<rank>.et here")
    for number in range(max(found) + 1):
        if number not in found:
            raise FormatError(f"{prefix}: rank {number} is missing; there are files up to rank {max(found)}")
    return [found[number] for number in range(len(found))]


def devices(prefix: Path) -> list[str]:
    """The device that each rank's file says it is of; empty where a file does not say.

    Raises:
        FormatError: files are missing or broken.
    """
    return [str(metadata(path).get(f"{OWN}device") or "") for path in files(prefix)]


def metadata(path: Path) -> dict[str, Any]:
    """What a file says of itself."""
    first = next(read_messages(path), None)
    if first is None:
        raise FormatError(f"{path}: an empty file; a Chakra trace begins with its metadata")
    try:
        return attributes(first)
    except ValueError as error:
        raise FormatError(f"{path}: metadata: {error}") from error


def nodes_of(path: Path, rank: int) -> list[Part]:
    """The nodes of a file, once their ids and dependencies have been checked."""
    messages = read_messages(path)
    next(messages)
    found: dict[int, Part] = {}
    for message in messages:
        where = f"{path}: node {message.id}"
        if message.id in found:
            raise FormatError(f"{where}: the id is used twice")
        try:
            found[message.id] = Part(path, rank, message, attributes(message))
        except ValueError as error:
            raise FormatError(f"{where}: {error}") from error
    for part in found.values():
        for dep in (*part.message.data_deps, *part.message.ctrl_deps):
            if dep not in found:
                raise FormatError(f"{part}: depends on node {dep}, which is not in the file")
    return list(found.values())


def issued(parts: Sequence[Part]) -> Iterator[Part]:
    """The nodes of a rank in an order that keeps dependencies, of those that are ready the lowest id first."""
    by_id = {part.id: part for part in parts}
    sorter = graphlib.TopologicalSorter({i: [*p.message.data_deps, *p.message.ctrl_deps] for i, p in by_id.items()})
    try:
        sorter.prepare()
    except graphlib.CycleError as error:
        cycle = " -> ".join(str(node) for node in error.args[1])
        raise FormatError(f"{by_id[error.args[1][0]]}: waits for itself: {cycle}") from error
    ready = list(sorter.get_ready())
    heapq.heapify(ready)
    while ready:
        node = heapq.heappop(ready)
        yield by_id[node]
        sorter.done(node)
        for following in sorter.get_ready():
            heapq.heappush(ready, following)


def gathered(parts: Sequence[Part]) -> Iterator[list[Part]]:
    """Parts of one node of the workload, in the order of the first of them."""
    shared: dict[int, list[Part]] = {}
    for part in parts:
        if part.kind in TOGETHER:
            shared.setdefault(part.id, []).append(part)
    for part in parts:
        if part.kind not in TOGETHER:
            yield [part]
        elif shared[part.id][0] is part:
            yield shared[part.id]
