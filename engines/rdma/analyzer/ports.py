"""Where a machine's edges begin and end: what the graph executor asks of a transfer, and one inside a process.

`Port` is the whole of it; `device_port` implements it over a registered device. `Memory` is the obvious implementation,
for tests and for dividing a graph within one process: slots are plain memory, and the wire is a copy from slot to slot.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from engines.rdma.analyzer.edges import Protocol as Placing
from harness.api import HarnessError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch

    from engines.rdma.analyzer.edges import Edge
    from engines.rdma.analyzer.plan import Plan
    from engines.rdma.executor import Operation


class Overwritten(HarnessError):
    """A slot was written before its last content was released."""


class Port(Protocol):
    """One machine's end of all its edges; steps count from one."""

    def slots(self) -> Mapping[str, Any]:
        """Registered memory for every static value that leaves this machine, by the producer's name."""

    def writable(self, producer: str, step: int) -> bool:
        """Whether the slot may be written for `step`: every receiver has released the step before."""

    def post(self, edge: Edge, step: int) -> None:
        """Send a static edge whose bytes lie in its slot."""

    def send(self, edge: Edge, wire: torch.Tensor, step: int) -> Operation[None]:
        """Send a dynamic edge."""

    def receive(self, edge: Edge, step: int) -> Operation[torch.Tensor]:
        """Wait for an edge; returns the bytes' tensor in the order of the wire, valid until `release`."""

    def release(self, step: int, source: str) -> None:
        """Say that what was received from one machine in `step` is not needed any more."""


def aligned(nbytes: int) -> torch.Tensor:
    """Plain memory that can serve as a slot: uint8, 64-byte aligned, zeroed."""
    import torch

    memory = torch.zeros(nbytes + 64, dtype=torch.uint8)
    start = -memory.data_ptr() % 64
    return memory[start : start + nbytes]


class Memory:
    """The edges of a plan within one process.

    Args:
        plan: whose edges.
        delay: looks that a receiver needs before it sees a value, by edge and step; for tests of the order of events.
    """

    def __init__(self, plan: Plan, delay: Callable[[Edge, int], int] = lambda _edge, _step: 0) -> None:
        self.plan, self.delay = plan, delay
        self.landed: dict[int, tuple[int, torch.Tensor]] = {}
        """Edge -> step and bytes at the receiver."""
        self.targets = {edge.index: aligned(edge.nbytes or 0) for edge in plan.edges if edge.protocol is Placing.STATIC}
        self.released = dict.fromkeys((edge.index for edge in plan.edges), 0)
        """Edge -> last step that its receiver released."""

    def port(self, machine: str) -> MemoryPort:
        """One machine's end."""
        return MemoryPort(self, machine)


class MemoryPort:
    """One machine's end of `Memory`."""

    def __init__(self, memory: Memory, machine: str) -> None:
        self._memory, self._machine = memory, machine
        groups = memory.plan.slot_groups(machine)
        self._slots = {edge.producer: aligned(edge.nbytes or 0) for edges in groups.values() for edge in edges}
        self._leaving: dict[str, list[Edge]] = {}
        for edge in memory.plan.sent_by(machine):
            self._leaving.setdefault(edge.producer, []).append(edge)

    def slots(self) -> Mapping[str, torch.Tensor]:
        """As `Port.slots`."""
        return self._slots

    def writable(self, producer: str, step: int) -> bool:
        """As `Port.writable`."""
        return all(self._memory.released[edge.index] >= step - 1 for edge in self._leaving[producer])

    def post(self, edge: Edge, step: int) -> None:
        """As `Port.post`.

        Raises:
            Overwritten: the receiver has not released the last step.
        """
        self._check(edge, step)
        target = self._memory.targets[edge.index]
        target.copy_(self._slots[edge.producer])
        self._memory.landed[edge.index] = step, target

    def send(self, edge: Edge, wire: torch.Tensor, step: int) -> Operation[None]:
        """As `Port.send`."""
        while not self.writable(edge.producer, step):
            yield f"room for {edge.producer}"
        self._check(edge, step)
        self._memory.landed[edge.index] = step, wire.contiguous().clone()

    def receive(self, edge: Edge, step: int) -> Operation[torch.Tensor]:
        """As `Port.receive`."""
        looks = self._memory.delay(edge, step)
        while self._memory.landed.get(edge.index, (0,))[0] < step or looks:
            looks = max(0, looks - 1)
            yield edge.producer, looks
        found, wire = self._memory.landed[edge.index]
        assert found == step
        return wire

    def release(self, step: int, source: str) -> None:
        """As `Port.release`; spoils the slots, so that a late reader cannot go unnoticed."""
        for edge in self._memory.plan.received_by(self._machine):
            if edge.source != source:
                continue
            if edge.index in self._memory.targets:
                self._memory.targets[edge.index].fill_(0xAB)
            self._memory.released[edge.index] = step

    def _check(self, edge: Edge, step: int) -> None:
        if self._memory.released[edge.index] != step - 1:
            raise Overwritten(
                f"{edge.producer}: step {step} would overwrite step {self._memory.released[edge.index] + 1}"
            )
